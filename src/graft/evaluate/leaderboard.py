"""The leaderboard of a set of judgements: every model's rating, and what one must know to read it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isnan
from typing import Any

from graft.errors import DataError, notice, one_of
from graft.evaluate.agreement import (
    Agreement,
    Estimate,
    OrderBias,
    Relative,
    agreement,
    length_bias,
    mean_over_prompts,
    order_bias,
    relative_scores,
)
from graft.evaluate.judgements import Judgement, games
from graft.evaluate.tournament import Games, Ratings, bradley_terry, elo, elo_over_prompts

RATINGS = ("bradley_terry", "elo")


@dataclass(frozen=True)
class Place:
    """One model's line.

    rating: with its 95 % interval over prompts.  games: that it played.  won: its points per game, 0 … 1.
    relative: its marks in per cent of those of another model.
    """

    model: str
    rating: Estimate
    games: int
    won: Estimate
    relative: Relative | None = None


@dataclass(frozen=True)
class Leaderboard:
    """The models, best first, and the facts about the judgements.

    judgements: how many were read.  unread: those without a verdict, which count nowhere else.
    points, played: the matrices of points and games of each two models, in the order of the places.
    """

    places: list[Place]
    by: str
    prompts: int
    judgements: int
    unread: int
    order: OrderBias | None
    length: Estimate | None
    agreement: Agreement | None
    points: list[list[float]]
    played: list[list[int]]

    def json(self) -> dict[str, Any]:
        """Return everything as JSON values; what is not defined is null."""
        facts = asdict(self)
        if self.agreement is not None:
            for name in ("kendall", "spearman"):
                pairs = getattr(self.agreement, name)
                facts["agreement"][name] = [
                    {"judges": list(pair), "value": None if isnan(value) else value}
                    for pair, value in pairs.items()
                ]
            if isnan(self.agreement.kappa):
                facts["agreement"]["kappa"] = None
        return facts


def leaderboard(
    judgements: Sequence[Judgement],
    by: str = "bradley_terry",
    *,
    averaged: bool = True,
    relative_to: str | None = None,
    seed: int = 0,
) -> Leaderboard:
    """Return the leaderboard of judgements.

    by: bradley_terry or elo.  averaged: both orders of a pair are one game (`judgements.games`).
    relative_to: the model whose marks are 100 per cent. Raises UsageError for an unknown rating or model,
    DataError if no game was decided or if some models never met.
    """
    one_of("rating", by, RATINGS)
    played = games(judgements, averaged=averaged)
    ratings = _ratings(played, by, seed)
    relative = relative_scores(judgements, relative_to, seed=seed) if relative_to is not None else {}
    best_first = sorted(range(len(played.models)), key=lambda i: (-ratings.rating[i], played.models[i]))
    points, counts = played.points(), played.played()
    return Leaderboard(
        [_place(played, ratings, i, int(counts[i].sum()), relative, seed) for i in best_first],
        by,
        len(played.prompts),
        len(judgements),
        sum(one.verdict is None for one in judgements),
        order_bias(judgements, seed=seed),
        length_bias(judgements, seed=seed),
        _agreement(judgements),
        [[float(points[i, j]) for j in best_first] for i in best_first],
        [[int(counts[i, j]) for j in best_first] for i in best_first],
    )


def _agreement(judgements: Sequence[Judgement]) -> Agreement | None:
    """Return how far the judges agree; None if there is one, or if they judged nothing in common."""
    if len({one.judge for one in judgements}) < 2:
        return None
    try:
        return agreement(judgements)
    except DataError as error:
        notice(f"the agreement of the judges is not known: {error.given}")
        return None


def _ratings(played: Games, by: str, seed: int) -> Ratings:
    """Return the ratings with their intervals over prompts."""
    if by == "bradley_terry":
        return bradley_terry(played, seed=seed)
    over_prompts = elo_over_prompts(played, seed=seed)
    return Ratings(elo(played, seed=seed).rating, over_prompts.low, over_prompts.high)


def _place(
    played: Games, ratings: Ratings, i: int, count: int, relative: dict[str, Relative], seed: int
) -> Place:
    """Return the line of model i."""
    own = [
        (played.prompts[prompt], score if a == i else 1 - score)
        for prompt, a, b, score in zip(played.prompt, played.a, played.b, played.score, strict=True)
        if i in (a, b)
    ]
    rating = Estimate(float(ratings.rating[i]), float(ratings.low[i]), float(ratings.high[i]), count)
    won = mean_over_prompts([prompt for prompt, _ in own], [float(score) for _, score in own], seed=seed)
    return Place(played.models[i], rating, count, won, relative.get(played.models[i]))
