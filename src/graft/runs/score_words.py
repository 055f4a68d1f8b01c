"""Scores in words: how a metric is written, what it says, and whether a change of it is a gain."""

from dataclasses import dataclass

LESS, MORE, NEITHER = -1, 1, 0


@dataclass(frozen=True)
class Metric:
    """What one must know to read a metric.

    better: LESS, MORE or NEITHER.  share: whether it is a share of 1, to be shown in per cent.  title: its
    name, where that is not the word for it.
    """

    says: str = ""
    better: int = NEITHER
    share: bool = False
    title: str = ""


METRICS = {
    "perplexity": Metric("between how many tokens the model wavers at each token; 1 is certainty", LESS),
    "loss": Metric("what training makes smaller", LESS),
    "token_accuracy": Metric("tokens that the model would have chosen itself", MORE, share=True),
    "accuracy": Metric("rows that are right", MORE, share=True),
    "precision": Metric("of what was predicted, the part that is right", MORE, share=True),
    "recall": Metric("of what is true, the part that was found", MORE, share=True),
    "f1": Metric("precision and recall in one number", MORE, share=True, title="F1"),
    "exact_match": Metric("answers that equal a reference, but for case and punctuation", MORE, share=True),
    "bleu": Metric("sequences of words shared with the references, 0 to 100", MORE, title="BLEU"),
    "chrf": Metric("sequences of letters shared with the references, 0 to 100", MORE, title="chrF"),
    "rouge_l": Metric("longest common sequence of words with a reference, 0 to 100", MORE, title="ROUGE-L"),
    "distinct_1": Metric("different words, of all words of the answers", share=True),
    "distinct_2": Metric("different pairs of words, of all of the answers", share=True),
    "margin": Metric("by how much the better answer is ahead", MORE),
    "ranked": Metric("pairs whose better answer is the likelier one", MORE, share=True),
    "calibration": Metric("distance of the stated probabilities from the truth; 0 is none", LESS),
    "length_bias": Metric("correlation of reward and length; 0 is none"),
    "reward": Metric("what the answers are paid", MORE),
    "judge": Metric("what a judge who pays nothing says of the answers", MORE),
    "kl": Metric("distance from the model that training started from", title="KL"),
    "length": Metric("tokens of an answer"),
    "ended": Metric("answers that came to an end by themselves", share=True),
}
UNKNOWN = Metric()


def metric_of(name: str) -> Metric:
    """Return what is known of a metric; of one of the user's own, nothing."""
    return METRICS.get(name, UNKNOWN)


def titled(name: str) -> str:
    """Return a metric's name as people write it.

    >>> titled("bleu"), titled("exact_match")
    ('BLEU', 'exact match')
    """
    return metric_of(name).title or name.replace("_", " ")


def in_figures(name: str, value: object) -> str:
    """Return a score as people write it.

    >>> in_figures("accuracy", 0.85), in_figures("perplexity", 121.63), in_figures("tokens", 4035.0)
    ('85.0 %', '121.6', '4,035')
    """
    if not isinstance(value, int | float):
        return str(value)
    if metric_of(name).share and 0 <= value <= 1:
        return f"{100 * value:.1f} %"
    if value == int(value) and abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def change(name: str, before: float, after: float) -> tuple[str, int]:
    """Return the change of a score in words, and whether it is a gain (1), a loss (-1) or neither (0).

    >>> change("accuracy", 0.5, 0.85), change("perplexity", 100.0, 4.0), change("length", 8.0, 9.5)
    (('+35.0 points', 1), ('−96.0 %', 1), ('+1.5', 0))
    """
    metric = metric_of(name)
    if metric.share:
        text = f"{100 * (after - before):+.1f} points"
    elif name == "perplexity" and before > 0:
        text = f"{100 * (after / before - 1):+,.1f} %"
    else:
        text = f"{after - before:+.3g}"
    moved = (after > before) - (after < before)
    return text.replace("-", "−") if moved else "no change", metric.better * moved
