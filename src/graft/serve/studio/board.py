"""The leaderboard of the blind votes: Bradley-Terry ratings with 95 % intervals, and what sways the voters.

A vote is a game on its prompt; that both answers are bad is a tie, for neither is better. Intervals are over
prompts that are drawn with replacement (Efron 1979), as in `graft.evaluate`. Votes that were undone, and
those on answers that name a model, count nowhere.
"""

import asyncio
import csv
import io
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from graft.errors import nearest
from graft.evaluate.tournament import INTERVAL, Games, bradley_terry
from graft.serve.failures import ApiError
from graft.serve.security import role
from graft.serve.studio.votes import Contestant, Vote, votes_of

router = APIRouter(prefix="/studio/api")
POINTS = {"a": 1.0, "b": 0.0, "tie": 0.5, "bad": 0.5}  # of the answer on the left
FEW = 30  # votes of a pair, below which its figures say little
RESAMPLES = 1000
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # with which a table's program lets a formula begin
Table = list[list[Any]]
Game = tuple[str, str, str, float]  # prompt, model on the left, on the right, points of the left one


@router.get("/score")
@role("infer")
async def score(request: Request) -> JSONResponse:
    """Return the running score: how often each model won, tied and lost."""
    return JSONResponse({"models": tally(await _all(request))})


@router.get("/leaderboard")
@role("infer")
async def leaderboard(request: Request, tag: str | None = None) -> JSONResponse:
    """Return the leaderboard; of the votes with a tag, if one is given."""
    votes = await _all(request)
    return JSONResponse(await asyncio.to_thread(board, votes, tag))


@router.get("/leaderboard.csv")
@role("infer")
async def leaderboard_csv(request: Request, tag: str | None = None) -> Response:
    """Return the places of the leaderboard as CSV."""
    found = await asyncio.to_thread(board, await _all(request), tag)
    columns = ["place", "model", "rating", "low", "high", "votes", "won", "tied", "lost"]
    rows = [[one[column] for column in columns] for one in found["places"]]
    return _csv("leaderboard.csv", [columns, *rows])


@router.get("/votes.csv")
@role("infer")
async def votes_csv(request: Request) -> Response:
    """Return every vote with its prompt and both answers as CSV; also those that do not count."""
    return _csv("votes.csv", await asyncio.to_thread(vote_table, await _all(request)))


def board(votes: Sequence[Vote], tag: str | None = None) -> dict[str, Any]:
    """Return the leaderboard of votes as JSON values.

    places      best first: place, model, rating, low, high, votes, won, tied, lost. Models share a place
                where their intervals overlap with that of the best of them: no vote tells them apart
    apart       models that no chain of votes connects with those of the places
    matrix      [row][column]: {votes, points} of the row's model against the column's; null: never met
    few         pairs that met in 1 to FEW - 1 votes, [model, model, votes]
    left        {value, low, high, count}: points of the left answers per vote; ½ is no bias; null: no vote
    bad         votes that call both answers bad, which are ties here
    tags        [{tag, votes}] of all votes that count
    unseen      votes that do not count: {undone, flagged}

    Raises ApiError for a tag that no vote has.
    """
    counted = [one for one in votes if one.counts]
    tags = Counter(tag for one in counted for tag in one.tags)
    if tag is not None:
        if tag not in tags:
            known = ", ".join(repr(one) for one in nearest(tag, tags)) or "none so far"
            raise ApiError(
                404, f"no vote has the tag {tag[:40]!r}; those that are known: {known}", param="tag"
            )
        counted = [one for one in counted if tag in one.tags]
    labels = _labels(counted)
    rows = [_game(one, labels) for one in counted]
    ranked, apart = _together(rows)
    places = _places([row for row in rows if row[1] in ranked], counted, labels) if ranked else []
    order = [place["model"] for place in places] + apart
    matrix, few = _matrix(rows, order)
    return {
        "votes": len(counted),
        "prompts": len({row[0] for row in rows}),
        "places": places,
        "apart": apart,
        "models": order,
        "matrix": matrix,
        "few": few,
        "enough": FEW,
        "left": _left(rows),
        "bad": sum(one.verdict == "bad" for one in counted),
        "tags": [{"tag": one, "votes": count} for one, count in sorted(tags.items())],
        "tag": tag,
        "unseen": {
            "undone": sum(one.undone_at is not None for one in votes),
            "flagged": sum(one.undone_at is None and one.battle.flagged for one in votes),
        },
    }


def tally(votes: Sequence[Vote]) -> list[dict[str, Any]]:
    """Return how often each model won, tied and lost in the votes that count, the most wins first."""
    counted = [one for one in votes if one.counts]
    rows = [{"model": name, **own} for name, own in _outcomes(counted, _labels(counted)).items()]
    return sorted(rows, key=lambda row: (-row["won"], row["lost"], row["model"]))


def vote_table(votes: Iterable[Vote]) -> Table:
    """Return votes as the rows of a table, the first with its columns."""
    table: Table = [
        ["battle", "voted", "prompt", "model_a", "digest_a", "model_b", "digest_b", "answer_a", "answer_b",
         "verdict", "reason", "tags", "voter", "counts", "undone", "flagged"]
    ]  # fmt: skip
    for one in votes:
        fight = one.battle
        (a, b), when = fight.sides, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(one.created))
        table.append(
            [fight.id, when, fight.asked, a.name, a.digest, b.name, b.digest, *fight.answers, one.verdict,
             one.reason, " ".join(one.tags), one.voter, one.counts, one.undone_at is not None, fight.flagged]
        )  # fmt: skip
    return table


def csv_text(table: Table) -> str:
    """Return a table as CSV. An apostrophe stands before what a table's program would take for a formula.

    >>> csv_text([["=1+1", -2, "a"]])
    "'=1+1,-2,a\\n"
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in table:
        writer.writerow(
            f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell for cell in row
        )
    return text.getvalue()


async def _all(request: Request) -> list[Vote]:
    votes = await asyncio.to_thread(votes_of, request)
    return await asyncio.to_thread(votes.all)


def _csv(name: str, table: Table) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "X-Content-Type-Options": "nosniff"}
    return Response(csv_text(table), media_type="text/csv; charset=utf-8", headers=headers)


def _labels(votes: Iterable[Vote]) -> dict[Contestant, str]:
    """Return what each model is called: its name; an older one of that name has a part of its digest too."""
    latest: dict[Contestant, float] = {}
    for one in votes:
        for side in one.battle.sides:
            latest[side] = max(one.battle.created, latest.get(side, 0.0))
    labels: dict[Contestant, str] = {}
    taken: set[str] = set()
    for side in sorted(latest, key=lambda side: (-latest[side], side)):  # the newest keeps the bare name
        labels[side] = side.name if side.name not in taken else f"{side.name} ({side.digest[:8]})"
        taken.add(side.name)
    return labels


def _game(vote: Vote, labels: dict[Contestant, str]) -> Game:
    left, right = (labels[side] for side in vote.battle.sides)
    return vote.battle.asked, left, right, POINTS[vote.verdict]


def _together(rows: Sequence[Game]) -> tuple[set[str], list[str]]:
    """Return the largest group of models that games connect, by models, then games; and the other models."""
    groups: list[set[str]] = []
    for _, a, b, _ in rows:
        touched = [group for group in groups if a in group or b in group]
        groups = [group for group in groups if group not in touched] + [{a, b}.union(*touched)]
    if not groups:
        return set(), []
    games = [sum(row[1] in group for row in rows) for group in groups]
    _, _, largest = max(zip(map(len, groups), games, map(sorted, groups), strict=True))
    return set(largest), sorted(set().union(*groups) - set(largest))


def _places(
    rows: Sequence[Game], votes: Sequence[Vote], labels: dict[Contestant, str]
) -> list[dict[str, Any]]:
    played = Games.of(rows)
    ratings = bradley_terry(played, resamples=RESAMPLES)
    outcomes = _outcomes(votes, labels)
    order = sorted(range(len(played.models)), key=lambda i: (-ratings.rating[i], played.models[i]))
    places: list[dict[str, Any]] = []
    place, best_low = 0, np.inf
    for number, i in enumerate(order, 1):
        if ratings.high[i] < best_low:  # surely below the best of the place above
            place, best_low = number, ratings.low[i]
        own = outcomes[played.models[i]]
        places.append(
            {
                "place": place,
                "model": played.models[i],
                "rating": round(float(ratings.rating[i]), 1),
                "low": round(float(ratings.low[i]), 1),
                "high": round(float(ratings.high[i]), 1),
                "votes": sum(own.values()),
                **own,
            }
        )
    return places


def _outcomes(votes: Iterable[Vote], labels: dict[Contestant, str]) -> dict[str, dict[str, int]]:
    """Return {model: {won, tied, lost}}."""
    found: dict[str, dict[str, int]] = {}
    for one in votes:
        for letter, side in zip("ab", one.battle.sides, strict=True):
            own = found.setdefault(labels[side], {"won": 0, "tied": 0, "lost": 0})
            own["won" if one.verdict == letter else "lost" if one.verdict in ("a", "b") else "tied"] += 1
    return found


def _matrix(
    rows: Sequence[Game], order: Sequence[str]
) -> tuple[list[list[dict[str, Any] | None]], list[list[Any]]]:
    if not rows:
        return [], []
    played = Games.of(rows)
    at = [played.models.index(model) for model in order]
    games, points = played.played(), played.points()
    matrix = [
        [{"votes": int(games[i, j]), "points": float(points[i, j])} if games[i, j] else None for j in at]
        for i in at
    ]
    pairs = [(i, j) for place, i in enumerate(at) for j in at[place + 1 :]]
    few = [[played.models[i], played.models[j], int(games[i, j])] for i, j in pairs if 0 < games[i, j] < FEW]
    return matrix, few


def _left(rows: Sequence[Game]) -> dict[str, Any] | None:
    """Return the points of the answers on the left; sides are drawn, so that ½ is no bias."""
    if not rows:
        return None
    index = {prompt: i for i, prompt in enumerate(dict.fromkeys(row[0] for row in rows))}
    places, values = [index[row[0]] for row in rows], [row[3] for row in rows]
    sums, counts = np.bincount(places, values), np.bincount(places)
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(RESAMPLES):
        drawn = rng.integers(len(index), size=len(index))
        shares.append(sums[drawn].sum() / counts[drawn].sum())
    low, high = np.percentile(shares, INTERVAL)
    return {"value": float(np.mean(values)), "low": float(low), "high": float(high), "count": len(rows)}
