"""Judges: who says which of two answers is better, and the judging of pairs in both orders.

A judge takes questions, each a prompt with two answers in the order in which they are shown, and returns one
opinion for each. It does not know which models wrote the answers.

    rule:shorter, rule:longer, rule:distinct_2, rule:rouge_l, ...    a rule; most metrics need references
    package.module:function     (prompt, first, second) -> 1, 2, "tie", None (no verdict), or two marks
    marks(score)                (prompts, answers) -> one number each; the larger wins
    reward:RUN                  the marks of a reward adapter (`graft.runs.reward`)
    http://127.0.0.1:8000/v1    a model behind an OpenAI-compatible endpoint (`graft.evaluate.endpoint`)
    me                          a person in the terminal (`graft.evaluate.person`)

Whatever a judge says that is no verdict is kept and counted as none; it is never guessed at.
"""

import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from graft.core.functions import imported
from graft.errors import DataError, UsageError, one_of
from graft.evaluate.answer_files import Answer
from graft.evaluate.judgements import FIRST, POINTS, SECOND, TIE, Judgement, from_scores
from graft.evaluate.metrics import TEXT

ALONE = ("distinct_1", "distinct_2")  # metrics that need no reference
MARKS = re.compile(r"(\d+(?:\.\d+)?)(?:\s*,\s*|\s+)(\d+(?:\.\d+)?)\.?")  # a line that is nothing else
Score = Callable[[Sequence[Any], Sequence[str]], Sequence[float]]


@dataclass(frozen=True)
class Question:
    """A prompt and two answers, in the order in which a judge sees them.

    references: answers that are right, where there are any.  source: where the answers come from.
    asked: the prompt as the models were asked, a text or messages.
    """

    prompt: str
    first: str
    second: str
    references: tuple[str, ...] = ()
    source: str = ""
    asked: Any = ""


@dataclass(frozen=True)
class Opinion:
    """What a judge says: FIRST, SECOND, TIE or None, the two marks if it gave any, and its words."""

    verdict: str | None
    scores: tuple[float, float] | None = None
    said: str = ""


# One opinion for each question; None for one that was not judged, because the judge stopped.
Judge = Callable[[Sequence[Question]], Sequence[Opinion | None]]


def judged(
    answers: Mapping[str, Mapping[str, Answer]],
    judge: Judge,
    name: str = "",
    limit: int | None = None,
    *,
    once: int | None = None,
) -> list[Judgement]:
    """Return the judgements of every two models' answers to every prompt that both answered, in both orders.

    answers: {model: {prompt: answer}}.  name: of the judge.  limit: at most so many prompts of each pair.
    once: a seed. Each pair is shown in one order, by chance, and the pairs are shuffled: for people.
    What was not judged is left out. Raises DataError if two models have no prompt in common.
    """
    rng = random.Random(once)
    places = list[tuple[str, str, str]]()
    for a, b in combinations(answers, 2):
        common = [prompt for prompt in answers[a] if prompt in answers[b]][:limit]
        if not common:
            raise DataError(
                f"{a} and {b} answered no prompt in common",
                "answers to the same prompts",
                "compare the prompts of both files: they must be equal, character by character",
            )
        for prompt in common:
            orders = [(a, b), (b, a)]
            places += [(prompt, *pair) for pair in (orders if once is None else [rng.choice(orders)])]
    if once is not None:
        rng.shuffle(places)
    questions = [_question(p, answers[first][p], answers[second][p]) for p, first, second in places]
    opinions = judge(questions)
    return [
        Judgement(
            *place,
            opinion.verdict,
            opinion.scores,
            (len(question.first), len(question.second)),
            name,
            opinion.said,
        )
        for place, question, opinion in zip(places, questions, opinions, strict=True)
        if opinion is not None
    ]


def _question(prompt: str, first: Answer, second: Answer) -> Question:
    references = tuple(dict.fromkeys([*first.references, *second.references]))
    source = f"{first.source} and {second.source}"
    return Question(prompt, first.text, second.text, references, source, first.asked or second.asked)


def by_rule(name: str) -> Judge:
    """Return a judge that follows a rule: `shorter` or `longer` by characters, or a metric of texts.

    Raises UsageError for an unknown rule; the judge raises DataError where a metric lacks a reference.
    """
    one_of("rule", name, ("shorter", "longer", *TEXT))

    def judge(questions: Sequence[Question]) -> list[Opinion]:
        return [_from_marks((mark(q.first, q), mark(q.second, q))) for q in questions]

    def mark(answer: str, question: Question) -> float:
        if name not in TEXT:
            return float(len(answer) if name == "longer" else -len(answer))
        if not question.references and name not in ALONE:
            raise DataError(
                f"{question.source} have no reference for the rule {name}",
                'a column "reference" in the answers',
                "add it, or judge by something else",
            )
        return TEXT[name]([answer], [list(question.references)])

    return judge


def by_function(path: str) -> Judge:
    """Return a judge that is a function of (prompt, first answer, second answer) at an import path.

    It returns 1, 2, "tie", None, or two marks. Raises UsageError if it cannot be imported; the judge raises
    UsageError, which names the answers, if it fails.
    """
    function = imported(path, "judge")

    def judge(questions: Sequence[Question]) -> list[Opinion]:
        return [opinion(question) for question in questions]

    def opinion(question: Question) -> Opinion:
        try:
            returned = function(question.prompt, question.first, question.second)
        except Exception as error:
            raise UsageError(
                f"judge {path!r} failed on {question.source} with {type(error).__name__}: {error}",
                'a function of (prompt, first, second) that returns 1, 2, "tie", None or two marks',
                "correct the function",
            ) from error
        if isinstance(returned, tuple | list) and len(returned) == 2 and all(map(_number, returned)):
            return _from_marks((float(returned[0]), float(returned[1])))
        known = not isinstance(returned, bool) and str(returned) in POINTS
        return Opinion(str(returned)) if known else Opinion(None, said=repr(returned))

    return judge


def marks(score: Score) -> Judge:
    """Return a judge that prefers the answer with the larger number, such as a reward.

    score: (prompts, answers) -> one number each. A prompt is a text or messages, as the models were asked. An
    answer is scored once, however often it is shown; the judge raises UsageError if there are not as many
    numbers as answers.
    """

    def judge(questions: Sequence[Question]) -> list[Opinion]:
        asked = {(q.prompt, text): q.asked or q.prompt for q in questions for text in (q.first, q.second)}
        given = [float(value) for value in score([*asked.values()], [text for _, text in asked])]
        if len(given) != len(asked):
            raise UsageError(
                f"{len(given)} numbers for {len(asked)} answers",
                "one number for each answer",
                "correct the function that scores them",
            )
        mark = dict(zip(asked, given, strict=True))
        return [_from_marks((mark[q.prompt, q.first], mark[q.prompt, q.second])) for q in questions]

    return judge


def _from_marks(scores: tuple[float, float]) -> Opinion:
    """Return the opinion that two marks are; none if one of them is not a number."""
    if not all(map(math.isfinite, scores)):
        return Opinion(None, said=f"marks {scores[0]} and {scores[1]}")
    return Opinion(from_scores(scores), scores)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def verdict_in(text: str) -> Opinion:
    """Return the verdict in the last line of a judge's text: 1, 2 or 3, where 3 and "tie" are ties.

    >>> verdict_in("Both are good, the first is longer.\\n1").verdict
    '1'
    >>> verdict_in("I prefer 1 or 2.").verdict
    """
    last = (text.strip().splitlines() or [""])[-1]
    found = re.fullmatch(r"\W*(1|2|3|tie)\W*", last, re.IGNORECASE)
    words = {"1": FIRST, "2": SECOND}
    return Opinion(words.get(found[1], TIE) if found else None, said=text)


def scores_in(text: str) -> Opinion:
    """Return the two marks in the first line of a judge's text, 0 … 10, and the verdict that they mean.

    >>> scores_in("9 7.5\\nThe first says more.").scores
    (9.0, 7.5)
    >>> scores_in("Both are good.").verdict
    """
    found = MARKS.fullmatch((text.strip().splitlines() or [""])[0].strip())
    scores = (float(found[1]), float(found[2])) if found else None
    if scores is None or max(scores) > 10:
        return Opinion(None, said=text)
    return Opinion(from_scores(scores), scores, text)
