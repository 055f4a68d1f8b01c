"""The charts of a run's report: which numbers stand on one chart, by the names that runs give them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from graft.runs.report.curves import NOISY, Chart, Curve, is_number, smoothed

Records = Sequence[Mapping[str, Any]]
COMPARED = ("chosen", "rejected", "good", "bad")  # kinds of answers that rows or pairs compare
OWN = ("reward_deviation", *(f"reward_{kind}" for kind in COMPARED))  # rewards that no function is called
EACH = ", each step"  # behind the name of a curve that has a trend beside it
WORDS = {
    "lr": "learning rate",
    "kl": "KL",
    "eval_kl": "KL, held-out rows",
    "grad_norm": "gradient norm",
    "tokens_per_s": "tokens per second",
    "memory_mb": "memory now, MiB",
    "peak_mb": "memory peak, MiB",
    "rollout_seconds": "seconds of writing",
}


@dataclass(frozen=True)
class Plan:
    """Names of numbers on one chart.  right: those of another unit, on an axis of their own."""

    title: str
    left: Sequence[str]
    right: Sequence[str] = field(default=())
    wide: bool = False


def charts(metrics: Records, timing: Records, counts: str = "tok") -> list[Chart]:
    """Return the charts for which these records have numbers.

    metrics, timing: the lines of the run's two files.  counts: what the stage counts for its speed.
    """
    names = dict.fromkeys(name for record in metrics for name in record)
    found = [_chart(plan, metrics) for plan in plans_of(names)]
    found += [_chart(plan, timing, counts) for plan in PLANS_OF_TIMING]
    return [chart for chart in found if chart.curves]


def calibration(points: Sequence[Sequence[float]]) -> Chart:
    """Return the chart of a reward model.  points: its probability, share of right pairs, number of pairs."""
    probability, right, _ = zip(*points, strict=True)
    told = Curve("share of right pairs", probability, right)
    ideal = Curve("as it should be", [0.5, 1.0], [0.5, 1.0], "dashed")
    return Chart("Calibration", [told, ideal], "probability of the preferred answer, as the model says")


def lengths(histogram: Sequence[Sequence[int]]) -> Chart:
    """Return the chart of a histogram: [up to this many tokens, examples], ..."""
    tops, counts = zip(*histogram, strict=True)
    return Chart("Lengths of the examples", [Curve("examples", tops, counts, "bars")], "up to so many tokens")


PLANS_OF_TIMING = (
    Plan("Speed and memory", ("tokens_per_s",), ("memory_mb", "peak_mb")),
    Plan("Seconds of writing answers", ("rollout_seconds",)),
)


def plans_of(names: Mapping[str, Any]) -> list[Plan]:
    """Return which numbers stand together.  names: of all that a run recorded."""
    answers = "reward" in names  # the model writes them itself: their loss when evaluated is minus the reward
    single = [name for name in names if name.removeprefix("eval_").startswith("reward_") and name not in OWN]
    loss = Plan("Loss", ("loss", "policy_loss") if answers else ("loss", "eval_loss"), wide=not answers)
    reward = Plan("Reward", ("reward", "eval_reward"), ("eval_judge",), wide=True)
    return [
        *((reward, loss) if answers else (loss, reward)),
        Plan("Single rewards", single if answers else ()),
        Plan("Divergence from the reference", ("kl", "eval_kl"), ("beta",)),
        Plan("Length of answers", ("length", "eval_length"), ("ended", "eval_ended")),
        Plan("Entropy", ("entropy",)),
        Plan("Groups", ("reward_deviation",), ("without_variance",)),
        Plan("Ratio of probabilities", ("ratio",), ("clip_fraction", "value_clip_fraction")),
        Plan("Divergence from the policy that wrote", ("approximate_kl",)),
        Plan("Value", ("value", "value_loss"), ("explained_variance",)),
        Plan("Accuracy", ("accuracy", "eval_accuracy", "token_accuracy")),
        Plan("Rewards of compared answers", (*_of_answers("reward"), "margin", "reference_point")),
        Plan("Log-probabilities of compared answers", _of_answers("logp")),
        Plan("Learning rate", ("lr",)),
        Plan("Gradient norm", ("grad_norm",)),
    ]


def _of_answers(what: str) -> list[str]:
    """Return the names under which runs on compared answers record a number of them."""
    return [f"{what}_{kind}" for kind in COMPARED]


def _chart(plan: Plan, records: Records, counts: str = "tok") -> Chart:
    found = _curves(records, plan.left)
    alone = not found  # then the axis on the right is the only one
    found += _curves(records, plan.right, right=not alone)
    curves = [one for number, curve in enumerate(found) for one in _with_trend(curve, number)]
    if counts != "tok":
        speed = in_words("tokens_per_s")
        curves = [replace(c, name=f"{counts} per second") if c.name == speed else c for c in curves]
    return Chart(plan.title, curves, wide=plan.wide)


def _curves(records: Records, names: Sequence[str], *, right: bool = False) -> list[Curve]:
    """Return a curve for each name that some record has; of a step that was repeated, the last number."""
    curves = []
    known = {name for record in records for name in record}
    for name in (name for name in names if name in known):
        points: dict[float, float] = {}
        for record in records:
            if is_number(step := record.get("step")) and is_number(value := record.get(name)):
                points[step] = value
        if points:
            steps = sorted(points)
            curves.append(Curve(in_words(name), steps, [points[step] for step in steps], right=right))
    return curves


def _with_trend(curve: Curve, colour: int) -> list[Curve]:
    """Return a curve; if it has many points, its trend beside it."""
    if len(curve.y) <= NOISY or curve.right or curve.name in map(in_words, ("lr", "tokens_per_s")):
        return [Curve(curve.name, curve.x, curve.y, right=curve.right, colour=colour)]
    return [
        Curve(f"{curve.name}{EACH}", curve.x, curve.y, "faint", colour=colour),
        Curve(curve.name, curve.x, smoothed(curve.y), colour=colour),
    ]


def in_words(name: str) -> str:
    """Return the name of a number for people.

    >>> in_words("eval_loss"), in_words("lr"), in_words("policy_loss")
    ('loss, held-out rows', 'learning rate', 'policy loss')
    """
    if name in WORDS:
        return WORDS[name]
    words = name.removeprefix("eval_").replace("_", " ")
    return f"{words}, held-out rows" if name.startswith("eval_") else words
