"""Scores of generated texts and of predicted classes, and the way to use a function of your own.

A text metric takes (predictions, references): one string per row, one list of acceptable strings per row.

    bleu, chrf     of the corpus by sacrebleu (Post 2018, arXiv 1804.08771), 13a tokens, all refs, 0 … 100
    rouge_l        F of the longest common subsequence (Lin 2004) by rouge_score, Porter stems;
                   best reference, 0 … 100
    exact_match    share equal to a reference after SQuAD's normalisation (Rajpurkar et al. 2016), 0 … 1
    distinct_n     different n-grams over all n-grams, of all rows (Li et al. 2016, arXiv 1510.03055), 0 … 1
    accuracy       share of rows, or of tagged words, whose class is right
    precision, recall, f1
                   of classes: plain means of each class's (macro), over classes predicted or true, 0 … 1
                   of entities, if words are tagged by IOB2: over all entities (micro), 0 … 1; an entity is
                   right if its type, first and last word are (`graft.data.tags`; CoNLL 2003, seqeval's strict
                   mode)
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Sequence
from itertools import chain
from typing import Any

from graft.core.functions import imported
from graft.data.tags import entities, iob2
from graft.errors import UsageError, one_of

Texts = Sequence[str]
References = Sequence[Sequence[str]]


def bleu(predictions: Texts, references: References) -> float:
    """Return corpus BLEU-4, 0 … 100. Rows may have different numbers of references."""
    import sacrebleu  # late, here and in chrf: the import is slow

    return sacrebleu.corpus_bleu(list(predictions), _streams(references)).score


def chrf(predictions: Texts, references: References) -> float:
    """Return corpus chrF2 (character 6-grams, β = 2), 0 … 100."""
    import sacrebleu

    return sacrebleu.corpus_chrf(list(predictions), _streams(references)).score


def rouge_l(predictions: Texts, references: References) -> float:
    """Return the mean over rows of the best reference's ROUGE-L F, 0 … 100.

    Its tokens are a-z and 0-9 only.
    """
    from rouge_score.rouge_scorer import RougeScorer  # imports nltk: one second

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    pairs = zip(predictions, references, strict=True)
    return 100 * _mean([scorer.score_multi(list(refs), text)["rougeL"].fmeasure for text, refs in pairs])


def exact_match(predictions: Texts, references: References) -> float:
    """Return the share of rows equal to one of their references after `normalise`."""
    pairs = zip(predictions, references, strict=True)
    return _mean([normalise(text) in {normalise(ref) for ref in refs} for text, refs in pairs])


def distinct_1(predictions: Texts, references: References | None = None) -> float:
    """Return the number of different words over that of all words."""
    return distinct(predictions, 1)


def distinct_2(predictions: Texts, references: References | None = None) -> float:
    """Return the number of different pairs of neighbouring words over that of all such pairs."""
    return distinct(predictions, 2)


def distinct(predictions: Texts, n: int) -> float:
    """Return the share of different n-grams of blank-separated words in all rows; 0 if there are none."""
    words = [text.split() for text in predictions]
    grams = [tuple(row[i : i + n]) for row in words for i in range(len(row) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def normalise(text: str) -> str:
    """Return SQuAD's normal form: lower case, no punctuation, no articles, single blanks.

    >>> normalise("The  Cat, sat!")
    'cat sat'
    """
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def accuracy(predictions: Sequence[Hashable], targets: Sequence[Hashable]) -> float:
    """Return the share of rows whose class is right."""
    return _mean([p == t for p, t in zip(predictions, targets, strict=True)])


def macro_f1(predictions: Sequence[Hashable], targets: Sequence[Hashable]) -> float:
    """Return the mean of 2·hits / (predicted + true) over every class that was predicted or is true."""
    return _mean([f1 for _, _, f1 in _by_class(predictions, targets)])


def macro_precision(predictions: Sequence[Hashable], targets: Sequence[Hashable]) -> float:
    """Return the mean over classes of hits / predicted; 0 for a class that was never predicted."""
    return _mean([precision for precision, _, _ in _by_class(predictions, targets)])


def macro_recall(predictions: Sequence[Hashable], targets: Sequence[Hashable]) -> float:
    """Return the mean over classes of hits / true; 0 for a class that is never true."""
    return _mean([recall for _, recall, _ in _by_class(predictions, targets)])


def _by_class(
    predictions: Sequence[Hashable], targets: Sequence[Hashable]
) -> list[tuple[float, float, float]]:
    """Return precision, recall and F of every class that was predicted or is true."""
    hits = Counter(p for p, t in zip(predictions, targets, strict=True) if p == t)
    predicted, true = Counter(predictions), Counter(targets)
    return [_ratios(hits[label], predicted[label], true[label]) for label in predicted.keys() | true.keys()]


def entity_scores(predictions: Sequence[Sequence[str]], targets: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return precision, recall and f1 of entities.  predictions, targets: one list of tags per row."""
    predicted, true = (
        {(i, *entity) for i, tags in enumerate(rows) for entity in entities(tags)}
        for rows in (predictions, targets)
    )
    precision, recall, f1 = _ratios(len(predicted & true), len(predicted), len(true))
    return {"precision": precision, "recall": recall, "f1": f1}


def class_scores(
    metrics: Sequence[str], predictions: Sequence[Any], targets: Sequence[Any], labels: Sequence[str] = ()
) -> dict[str, float]:
    """Return the values of those `metrics` that are scores of classes.

    predictions, targets: one class index per row, or a list with one per word.  labels: names of the classes.
    """
    wanted = [name for name in metrics if name in CLASS]
    tagged = bool(targets) and isinstance(targets[0], list)
    predicted, true = (list(chain(*rows)) if tagged else rows for rows in (predictions, targets))
    scores = {name: CLASS[name](predicted, true) for name in wanted}
    if tagged and labels and iob2(labels):
        of_entities = entity_scores(_tags(predictions, labels), _tags(targets, labels))
        scores |= {name: value for name, value in of_entities.items() if name in wanted}
    return scores


def _tags(rows: Sequence[Sequence[int]], labels: Sequence[str]) -> list[list[str]]:
    """Return class indices as the names of the classes."""
    return [[labels[index] for index in row] for row in rows]


TEXT: dict[str, Callable[..., float]] = {
    "bleu": bleu,
    "chrf": chrf,
    "rouge_l": rouge_l,
    "exact_match": exact_match,
    "distinct_1": distinct_1,
    "distinct_2": distinct_2,
}
CLASS: dict[str, Callable[..., float]] = {
    "accuracy": accuracy,
    "precision": macro_precision,
    "recall": macro_recall,
    "f1": macro_f1,
}
LOSS = ("perplexity", "loss", "token_accuracy")
NAMES = (*LOSS, *CLASS, *TEXT)


def check(names: Sequence[str], more: Collection[str] = ()) -> None:
    """Raise UsageError for a metric that is neither known, nor in `more`, nor an importable function."""
    known = dict.fromkeys([*NAMES, *more, "package.module:function", "file.py:function"])
    for name in names:
        if ":" in name:
            imported(name, "metric")
            continue
        try:
            one_of("evaluate.metrics", name, known)
        except UsageError as error:
            also = "`graft eval --metrics-list` says what each of them measures"
            raise UsageError(error.given, error.expected, f"{error.remedy.rstrip('?')}? {also}") from None


def user_scores(
    path: str, predictions: Texts, references: References, rows: Sequence[object]
) -> dict[str, float]:
    """Return the scores of a user's metric: one number, named like the function, or a dict of numbers.

    Raises UsageError if the function fails or returns something else.
    """
    function = imported(path, "metric")
    try:
        returned = function(list(predictions), [list(refs) for refs in references], list(rows))
    except Exception as error:
        raise UsageError(
            f"metric {path!r} failed with {type(error).__name__}: {error}",
            "a function of (predictions, references, rows) that returns a number or a dict of numbers",
            "correct the function",
        ) from error
    scores = returned if isinstance(returned, dict) else {path.rpartition(":")[2]: returned}
    if not all(isinstance(key, str) and isinstance(value, int | float) for key, value in scores.items()):
        raise UsageError(
            f"metric {path!r} returned {returned!r}", "a number or a dict of numbers", "correct the function"
        )
    return {key: float(value) for key, value in scores.items()}


def _streams(references: References) -> list[Any]:
    """Return rows of references as sacrebleu's streams (list[str | None]): None if a row has fewer."""
    if not all(references):
        row = [bool(refs) for refs in references].index(False)
        raise UsageError(f"row {row} has no reference", "one or more", "add one")
    return [
        [refs[i] if i < len(refs) else None for refs in references] for i in range(max(map(len, references)))
    ]


def _ratios(hits: int, predicted: int, true: int) -> tuple[float, float, float]:
    """Return precision, recall and their harmonic mean; 0 for a ratio without a denominator."""
    return (
        hits / predicted if predicted else 0.0,
        hits / true if true else 0.0,
        2 * hits / (predicted + true) if predicted + true else 0.0,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
