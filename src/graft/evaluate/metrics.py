"""Scores of generated texts and of predicted classes, and the door for a user's own score.

A text metric takes (predictions, references): one string per row, one list of acceptable strings per row.

    bleu, chrf     corpus level by sacrebleu (Post 2018, arXiv 1804.08771), 13a tokens, all references, 0 … 100
    rouge_l        F of the longest common subsequence (Lin 2004) by rouge_score, Porter stems; best reference, 0 … 100
    exact_match    share equal to a reference after SQuAD's normalisation (Rajpurkar et al. 2016), 0 … 1
    distinct_n     different n-grams over all n-grams of all predictions (Li et al. 2016, arXiv 1510.03055), 0 … 1
    accuracy, f1   of classes; f1 is the plain mean of each class's F (macro), over classes predicted or true, 0 … 1
"""

import importlib
import os
import re
import string
import sys
from collections.abc import Callable, Hashable, Sequence

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
    pairs = list(zip(predictions, targets, strict=True))
    scores = []
    for label in {label for pair in pairs for label in pair}:
        hits = sum(p == t == label for p, t in pairs)
        scores.append(2 * hits / sum((p == label) + (t == label) for p, t in pairs))
    return _mean(scores)


TEXT: dict[str, Callable[..., float]] = {
    "bleu": bleu,
    "chrf": chrf,
    "rouge_l": rouge_l,
    "exact_match": exact_match,
    "distinct_1": distinct_1,
    "distinct_2": distinct_2,
}
CLASS: dict[str, Callable[..., float]] = {"accuracy": accuracy, "f1": macro_f1}
LOSS = ("perplexity", "loss", "token_accuracy")
NAMES = (*LOSS, *CLASS, *TEXT)


def check(names: Sequence[str]) -> None:
    """Raise UsageError for a metric that is neither ours nor an importable "package.module:function"."""
    for name in names:
        if ":" in name:
            user_function(name)
        elif name not in NAMES:
            raise UsageError(
                f"metric {name!r} is unknown, nearest: {', '.join(nearest(name, NAMES))}",
                f"one of {', '.join(NAMES)}, or a function of yours as package.module:function",
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


def user_scores(path: str, predictions: Texts, references: References, rows: Sequence[object]) -> dict[str, float]:
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
        raise UsageError(f"row {[bool(r) for r in references].index(False)} has no reference", "one or more", "add it")
    return [[refs[i] if i < len(refs) else None for refs in references] for i in range(max(map(len, references)))]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
