"""Scores of generated texts and of predicted classes, and the door for a user's own score.

A text metric takes (predictions, references): one string per row, one list of acceptable strings per row.

    bleu, chrf     corpus level by sacrebleu (Post 2018, arXiv 1804.08771), 13a tokens, all references, 0 … 100
    rouge_l        F of the longest common subsequence (Lin 2004) by rouge_score, Porter stems; best reference, 0 … 100
    exact_match    share equal to a reference after SQuAD's normalisation (Rajpurkar et al. 2016), 0 … 1
    distinct_n     different n-grams over all n-grams of all predictions (Li et al. 2016, arXiv 1510.03055), 0 … 1
    accuracy       share of rows, or of tagged words, whose class is right
    precision, recall, f1
                   of classes: plain means of each class's (macro), over classes predicted or true, 0 … 1
                   of entities, where words are tagged by IOB2: over all entities (micro), one counts where type, first
                   and last word are right (`graft.data.tags`; CoNLL 2003, seqeval's strict mode), 0 … 1
"""

import importlib
import os
import re
import string
import sys
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Sequence
from itertools import chain
from typing import Any

from graft.data.tags import entities, iob2
from graft.errors import UsageError, nearest

Texts = Sequence[str]
References = Sequence[Sequence[str]]


def bleu(predictions: Texts, references: References) -> float:
    """Corpus BLEU-4, 0 … 100. Rows may have different numbers of references."""
    import sacrebleu  # here and in chrf: only those who ask for it pay its import

    return sacrebleu.corpus_bleu(list(predictions), _streams(references)).score


def chrf(predictions: Texts, references: References) -> float:
    """Corpus chrF2 (character 6-grams, β = 2), 0 … 100."""
    import sacrebleu

    return sacrebleu.corpus_chrf(list(predictions), _streams(references)).score


def rouge_l(predictions: Texts, references: References) -> float:
    """Mean over rows of the best reference's ROUGE-L F, 0 … 100. Its tokens are a-z and 0-9 only."""
    from rouge_score.rouge_scorer import RougeScorer  # imports nltk: one second

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    pairs = zip(predictions, references, strict=True)
    return 100 * _mean([scorer.score_multi(list(refs), text)["rougeL"].fmeasure for text, refs in pairs])


def exact_match(predictions: Texts, references: References) -> float:
    """Share of rows equal to one of their references after `normalise`."""
    pairs = zip(predictions, references, strict=True)
    return _mean([normalise(text) in {normalise(ref) for ref in refs} for text, refs in pairs])


def distinct_1(predictions: Texts, references: References | None = None) -> float:
    """Different words over all words."""
    return distinct(predictions, 1)


def distinct_2(predictions: Texts, references: References | None = None) -> float:
    """Different pairs of neighbouring words over all such pairs."""
    return distinct(predictions, 2)


def distinct(predictions: Texts, n: int) -> float:
    """Different n-grams of blank-separated words over all of them, pooled over rows; 0 where there are none."""
    words = [text.split() for text in predictions]
    grams = [tuple(row[i : i + n]) for row in words for i in range(len(row) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def normalise(text: str) -> str:
    """SQuAD's normal form: lower case, no punctuation, no articles, single blanks.

    >>> normalise("The  Cat, sat!")
    'cat sat'
    """
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def accuracy(predictions: Sequence[Hashable], targets: Sequence[Hashable]) -> float:
    """Share of rows whose class is right."""
    return _mean([p == t for p, t in zip(predictions, targets, strict=True)])


def macro_f1(predictions: Sequence[Hashable], targets: Sequence[Hashable]) -> float:
    """Unweighted mean of 2·hits / (predicted + true) over every class that was predicted or is true."""
    return _mean([f1 for _, _, f1 in _by_class(predictions, targets)])


def macro_precision(predictions: Sequence[Hashable], targets: Sequence[Hashable]) -> float:
    """Unweighted mean of hits / predicted; 0 for a class that was never predicted."""
    return _mean([precision for precision, _, _ in _by_class(predictions, targets)])


def macro_recall(predictions: Sequence[Hashable], targets: Sequence[Hashable]) -> float:
    """Unweighted mean of hits / true; 0 for a class that is never true."""
    return _mean([recall for _, recall, _ in _by_class(predictions, targets)])


def _by_class(
    predictions: Sequence[Hashable], targets: Sequence[Hashable]
) -> list[tuple[float, float, float]]:
    """Precision, recall and F of every class that was predicted or is true."""
    hits = Counter(p for p, t in zip(predictions, targets, strict=True) if p == t)
    told, true = Counter(predictions), Counter(targets)
    return [_ratios(hits[label], told[label], true[label]) for label in told.keys() | true.keys()]


def entity_scores(predictions: Sequence[Sequence[str]], targets: Sequence[Sequence[str]]) -> dict[str, float]:
    """precision, recall and f1 of the entities that the tags of each row's words tell."""
    told, true = (
        {(i, *e) for i, tags in enumerate(rows) for e in entities(tags)} for rows in (predictions, targets)
    )
    return dict(
        zip(("precision", "recall", "f1"), _ratios(len(told & true), len(told), len(true)), strict=True)
    )


def class_scores(
    metrics: Sequence[str], predictions: Sequence[Any], targets: Sequence[Any], labels: Sequence[str] = ()
) -> dict[str, float]:
    """Those of `metrics` that are of classes.

    predictions, targets: one class index per row, or a list with one per word.  labels: names of the classes.
    """
    wanted, tagged = (
        [name for name in metrics if name in CLASS],
        bool(targets) and isinstance(targets[0], list),
    )
    words = [list(chain(*rows)) if tagged else rows for rows in (predictions, targets)]
    found = {name: CLASS[name](*words) for name in wanted}
    if tagged and labels and iob2(labels):
        told, true = ([[labels[c] for c in row] for row in rows] for rows in (predictions, targets))
        found |= {name: value for name, value in entity_scores(told, true).items() if name in wanted}
    return found


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
    """Raise UsageError for a metric that is neither ours, nor among `more`, nor an importable "module:function"."""
    known = list(dict.fromkeys([*NAMES, *more]))
    for name in names:
        if ":" in name:
            user_function(name)
        elif name not in known:
            raise UsageError(
                f"metric {name!r} is unknown, nearest: {', '.join(nearest(name, known))}",
                f"one of {', '.join(known)}, or a function of yours as package.module:function",
                "correct evaluate.metrics",
            )


def user_function(path: str) -> Callable[..., float | dict[str, float]]:
    """The function behind "package.module:function"; it will be called with (predictions, references, rows)."""
    module, _, name = path.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # as `python -m` has it; an installed command does not
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"metric {path!r} cannot be imported: {error}",
            "package.module:function, importable from the folder where the command runs",
            "check the spelling and that the package is installed or on PYTHONPATH",
        ) from error
    if not callable(found):
        raise UsageError(f"metric {path!r} is a {type(found).__name__}", "a function", "name a function")
    return found


def user_scores(
    path: str, predictions: Texts, references: References, rows: Sequence[object]
) -> dict[str, float]:
    """Call a user's metric; it may return one number (named as the function) or a dict of numbers."""
    function = user_function(path)
    try:
        answer = function(list(predictions), [list(refs) for refs in references], list(rows))
    except Exception as error:
        raise UsageError(
            f"metric {path!r} failed with {type(error).__name__}: {error}",
            "a function of (predictions, references, rows) that returns a number or a dict of numbers",
            "correct the function",
        ) from error
    scores = answer if isinstance(answer, dict) else {path.partition(":")[2]: answer}
    if not all(isinstance(key, str) and isinstance(value, int | float) for key, value in scores.items()):
        raise UsageError(
            f"metric {path!r} returned {answer!r}", "a number or a dict of numbers", "correct the function"
        )
    return {key: float(value) for key, value in scores.items()}


def _streams(references: References) -> list[list[str | None]]:
    """Rows of references -> sacrebleu's streams, None where a row has fewer."""
    if not all(references):
        raise UsageError(
            f"row {[bool(r) for r in references].index(False)} has no reference", "one or more", "add it"
        )
    return [
        [refs[i] if i < len(refs) else None for refs in references] for i in range(max(map(len, references)))
    ]


def _ratios(hits: int, told: int, true: int) -> tuple[float, float, float]:
    """Precision, recall and their harmonic mean; 0 where nothing was told or is true."""
    return (
        hits / told if told else 0.0,
        hits / true if true else 0.0,
        2 * hits / (told + true) if told + true else 0.0,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
