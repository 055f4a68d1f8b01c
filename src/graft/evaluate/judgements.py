"""Judgements: which of two answers to a prompt is better, or what marks both get; files of them, and games.

A file has one JSON object a line:

    {"prompt": "...", "model_a": "sql", "model_b": "base", "order": "ba", "verdict": 1, "judge": "gpt-4"}

    order     which answer was shown first: "ab" (a's; also where there is none), or "ba"
    verdict   1: the answer shown first is better, 2: the one shown second, "tie", null: the judge gave none
    scores    the marks of both, in the order shown; without a verdict the larger mark wins
    characters   the lengths of both answers, in the order shown
    judge, said  who judged, and what was said

A judge favours the answer that it sees first, so each pair is shown in both orders and the two are averaged.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from graft.data.read import records
from graft.data.rows import BadRow, Reject
from graft.errors import DataError, listed
from graft.evaluate.tournament import Games

FIRST, SECOND, TIE = "1", "2", "tie"
POINTS = {FIRST: 1.0, SECOND: 0.0, TIE: 0.5}  # of the answer that is shown first
ORDERS = ("ab", "ba")
EXAMPLE = '{"prompt": "...", "model_a": "x", "model_b": "y", "order": "ab", "verdict": 1}'


@dataclass(frozen=True)
class Judgement:
    """What one judge says of two answers to a prompt, in the order in which it saw them.

    first, second: the models that wrote them.  verdict: FIRST, SECOND, TIE, or None: none could be read.
    scores, characters: the marks and the lengths of the two answers.  said: the judge's words.
    """

    prompt: str
    first: str
    second: str
    verdict: str | None
    scores: tuple[float, float] | None = None
    characters: tuple[int, int] | None = None
    judge: str = ""
    said: str = ""

    @property
    def points(self) -> float | None:
        """The points of the answer that was shown first: 1, ½ or 0; None without a verdict."""
        return None if self.verdict is None else POINTS[self.verdict]

    @property
    def pair(self) -> tuple[str, str]:
        """The two models in alphabetical order."""
        return (self.first, self.second) if self.first < self.second else (self.second, self.first)

    @property
    def points_of_pair(self) -> float | None:
        """The points of the first model of `pair`."""
        points = self.points
        return points if points is None or self.first == self.pair[0] else 1 - points

    def row(self) -> dict[str, Any]:
        """Return the judgement as an object of a file."""
        a, b = self.pair
        verdict = int(self.verdict) if self.verdict in (FIRST, SECOND) else self.verdict
        row = {"prompt": self.prompt, "model_a": a, "model_b": b, "order": ORDERS[self.first != a]}
        known = {"scores": self.scores, "characters": self.characters, "judge": self.judge, "said": self.said}
        return {**row, "verdict": verdict, **{key: value for key, value in known.items() if value}}


def from_scores(scores: tuple[float, float]) -> str:
    """Return the verdict that two marks mean.

    >>> from_scores((9, 6)), from_scores((7, 7))
    ('1', 'tie')
    """
    return TIE if scores[0] == scores[1] else FIRST if scores[0] > scores[1] else SECOND


def read_judgements(path: str | Path) -> list[Judgement]:
    """Return the judgements of a file. Raises DataError that names the rows that are none."""
    judgements, rejects = list[Judgement](), list[Reject]()
    for record in records(path):
        if isinstance(record, Reject):
            rejects.append(record)
            continue
        try:
            judgements.append(_judgement(record.fields))
        except BadRow as bad:
            rejects.append(bad.at(record.source))
    if rejects:
        raise DataError(
            f"{len(rejects)} of {len(rejects) + len(judgements)} rows are not judgements: "
            f"{listed(rejects, 3, '; ')}",
            f"rows such as {EXAMPLE}",
            "correct these rows",
        )
    return judgements


def lines(judgements: Iterable[Judgement]) -> str:
    """Return judgements as the text of a file."""
    return "".join(json.dumps(one.row(), ensure_ascii=False) + "\n" for one in judgements)


def games(judgements: Sequence[Judgement], *, averaged: bool = True) -> Games:
    """Return the games that judgements with a verdict are.

    averaged: the orders in which a judge saw a pair make one game, with the mean of their points; else each
    judgement is a game of its own, as in the QLoRA paper.
    """
    if not averaged:
        return Games.of(
            (one.prompt, one.first, one.second, one.points) for one in judgements if one.points is not None
        )
    return Games.of((prompt, *pair, points) for (_, prompt, pair), points in outcomes(judgements).items())


def outcomes(judgements: Iterable[Judgement]) -> dict[tuple[str, str, tuple[str, str]], float]:
    """Return {(judge, prompt, pair): points of the pair's first model}, averaged over both orders.

    Each order counts the same, however often it was judged. Judgements without a verdict are left out.
    """
    by_order: dict[tuple[str, str, tuple[str, str]], dict[str, list[float]]] = {}
    for one in judgements:
        if (points := one.points_of_pair) is not None:
            orders = by_order.setdefault((one.judge, one.prompt, one.pair), {})
            orders.setdefault(one.first, []).append(points)
    return {key: mean(map(mean, orders.values())) for key, orders in by_order.items()}


def _judgement(fields: Mapping[str, Any]) -> Judgement:
    """Return the judgement in a row. Raises BadRow."""
    missing = [name for name in ("prompt", "model_a", "model_b") if fields.get(name) in (None, "")]
    if missing:
        raise BadRow("no judgement", f"{', '.join(missing)} missing", f"write {EXAMPLE}")
    if fields["model_a"] == fields["model_b"]:
        raise BadRow("no pair", f"both models are {fields['model_a']}", "name two models")
    order = fields.get("order") or "ab"
    if order not in ORDERS:
        raise BadRow("unknown order", f"order is {order!r}", 'write "ab" or "ba"')
    scores = _two(fields, "scores", float)
    models = [_text(fields["model_a"]), _text(fields["model_b"])]
    first, second = models if order == "ab" else models[::-1]
    return Judgement(
        _text(fields["prompt"]),
        first,
        second,
        _verdict(fields, scores),
        scores,
        _two(fields, "characters", int),
        str(fields.get("judge") or ""),
        str(fields.get("said") or ""),
    )


def _verdict(fields: Mapping[str, Any], scores: tuple[float, float] | None) -> str | None:
    """Return the verdict of a row, or what its scores say. Raises BadRow."""
    if "verdict" not in fields:
        if scores is None:
            raise BadRow("no verdict", "neither verdict nor scores", 'write 1, 2, "tie" or null')
        return from_scores(scores)
    verdict = fields["verdict"]
    if verdict is None or verdict == "":  # an empty cell of a CSV
        return None
    if isinstance(verdict, float) and verdict.is_integer():  # as tables with gaps write whole numbers
        verdict = int(verdict)
    if isinstance(verdict, bool) or str(verdict) not in POINTS:
        raise BadRow("unknown verdict", f"verdict is {verdict!r}", 'write 1, 2, "tie" or null')
    return str(verdict)


def _two(fields: Mapping[str, Any], name: str, kind: type) -> Any:
    """Return two numbers of a row as a tuple; None if there are none. Raises BadRow."""
    given = fields.get(name)
    if given is None:
        return None
    plain = isinstance(given, list) and len(given) == 2
    if not plain or any(isinstance(one, bool) or not isinstance(one, int | float) for one in given):
        raise BadRow("unknown numbers", f"{name} is {given!r}", f"write {name} as two numbers")
    return kind(given[0]), kind(given[1])


def _text(value: Any) -> str:
    """Return a name or prompt as text: an id may be a number, a prompt a list of messages."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
