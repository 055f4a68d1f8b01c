"""Ratings of models from games: Elo over many orders of the games, and Bradley-Terry.

    Elo             E = 1 / (1 + 10^((R_b − R_a) / 400))     R_a ← R_a + K (S − E)     R_b ← R_b − K (S − E)
    Bradley-Terry   P(a beats b) = σ(θ_a − θ_b)              R = 1000 + 400/ln 10 · (θ − mean θ)
                    θ = arg max Σ S log σ(θ_a − θ_b) + (1 − S) log σ(θ_b − θ_a) − λ/2 |θ|²

S, the score of a, is 1 for a win, ½ for a tie, 0 for a loss, or a mean of these. Elo depends on the order of
the games, so its ratings are means over random orders (Dettmers et al. 2023, arXiv 2305.14314, §5.2: K = 32,
start 1000, 10,000 orders). The spread over orders says nothing about which prompts were asked: for that, both
ratings are computed again on prompts that are drawn with replacement (Efron 1979).
Bradley & Terry 1952, Biometrika 39.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graft.errors import DataError, UsageError, listed

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

START = 1000.0
K = 32.0
SCALE = 400 / np.log(10)  # points of Elo in one unit of θ
RIDGE = 1e-6
INTERVAL = (2.5, 97.5)  # percentiles
ENTRIES = 1 << 24  # numbers of games in the orders that are in memory at once


@dataclass(frozen=True)
class Games:
    """Games between pairs of models.

    models, prompts: names.  a, b (N,): the models of each game.  score (N,): of a, 0 … 1.
    prompt (N,): what each game was about.
    """

    models: tuple[str, ...]
    prompts: tuple[str, ...]
    a: Ints
    b: Ints
    score: Floats
    prompt: Ints

    @classmethod
    def of(cls, games: Iterable[tuple[str, str, str, float]]) -> "Games":
        """Return the games of rows (prompt, model, other model, score of the first model).

        Raises DataError if there are none, if a model plays against itself, or if a score is not in 0 … 1.
        """
        rows = list(games)
        if not rows:
            raise DataError("no game was decided", "at least one verdict", "judge some pairs of answers")
        for prompt, a, b, score in rows:
            if a == b or not 0 <= score <= 1:
                raise DataError(
                    f"the game {a} against {b} on {prompt!r} with score {score}",
                    "two different models and a score from 0 to 1",
                    "correct the row",
                )
        models = {name: i for i, name in enumerate(sorted({name for row in rows for name in row[1:3]}))}
        prompts = {name: i for i, name in enumerate(dict.fromkeys(row[0] for row in rows))}
        return cls(
            tuple(models),
            tuple(prompts),
            np.array([models[row[1]] for row in rows]),
            np.array([models[row[2]] for row in rows]),
            np.array([row[3] for row in rows], dtype=np.float64),
            np.array([prompts[row[0]] for row in rows]),
        )

    def points(self, weight: Floats | None = None) -> Floats:
        """Return the matrix (M, M) of points that the row's model won against the column's.

        weight (N,): how often each game counts; by default once.
        """
        size = len(self.models)
        weight = np.ones(len(self.a)) if weight is None else weight
        won = np.bincount(self.a * size + self.b, weight * self.score, size * size)
        lost = np.bincount(self.b * size + self.a, weight * (1 - self.score), size * size)
        return np.asarray(won + lost, dtype=np.float64).reshape(size, size)

    def played(self) -> npt.NDArray[np.integer]:
        """Return the matrix (M, M) of how many games each two models played."""
        size = len(self.models)
        once = np.bincount(self.a * size + self.b, minlength=size * size).reshape(size, size)
        return once + once.T

    def require_connected(self) -> None:
        """Raise DataError if the models fall into groups that never met: nothing compares their ratings."""
        met = {0}
        left = set(range(1, len(self.models)))
        played = self.played() > 0
        while reached := {other for other in left if played[other, list(met)].any()}:
            met |= reached
            left -= reached
        if left:
            others = listed(self.models[i] for i in sorted(left))
            raise DataError(
                f"no chain of games leads from {self.models[0]} to {others}",
                "models that met, directly or through others",
                "judge a pair of both groups, or rank each group alone",
            )


@dataclass(frozen=True)
class Ratings:
    """A rating of every model with the ends of its 95 % interval, each (M,)."""

    rating: Floats
    low: Floats
    high: Floats


def elo(
    games: Games,
    *,
    orders: int = 10_000,
    seed: int = 0,
    k: float = K,
    start: float = START,
    length: int | None = None,
) -> Ratings:
    """Return the mean Elo over random orders of the games; the interval is that of a single order.

    orders: how many.  k: the most that one game moves a rating.  start: every model's first rating.
    length: how many games of each order are played, from its beginning; by default all.
    """
    _positive("orders", orders)
    games.require_connected()
    count = len(games.a)
    rng = np.random.default_rng(seed)
    ratings = []
    for lanes in _blocks(orders, count):
        order = rng.permuted(np.tile(np.arange(count, dtype=np.int32), (lanes, 1)), axis=1)
        ratings.append(_play(games, np.ascontiguousarray(order.T[:length]), k, start))
    every = np.concatenate(ratings)
    low, high = np.percentile(every, INTERVAL, axis=0)
    return Ratings(every.mean(0), low, high)


def elo_over_prompts(
    games: Games, *, resamples: int = 400, orders: int = 50, seed: int = 0, k: float = K, start: float = START
) -> Ratings:
    """Return the mean Elo and its interval over prompts that are drawn with replacement.

    orders: of each resample, at least 2. The part of the spread that these few orders leave is taken out:
    the means of the resamples are drawn together until their variance is the one between the prompts alone.
    """
    _positive("resamples", resamples)
    _positive("orders", orders, least=2)
    games.require_connected()
    count = len(games.a)
    draws, rng = (np.random.default_rng([seed, stream]) for stream in range(2))
    means, variances = [], []
    for size in _blocks(resamples, count * orders):
        drawn = [np.repeat(np.arange(count), times) for times in _drawn(games, draws, size)]
        order = np.full((max(map(len, drawn)), size * orders), count, dtype=np.int32)  # `count`: no game
        for i, chosen in enumerate(drawn):
            lanes = rng.permuted(np.tile(chosen, (orders, 1)), axis=1)
            order[: len(chosen), i * orders : (i + 1) * orders] = lanes.T
        ratings = _play(games, order, k, start).reshape(size, orders, -1)
        means.append(ratings.mean(1))
        variances.append(ratings.var(1, ddof=1))
    every, by_order = np.concatenate(means), np.concatenate(variances).mean(0) / orders
    centre, total = every.mean(0), every.var(0)
    share = np.clip(1 - by_order / np.maximum(total, 1e-12), 0, 1)
    low, high = np.percentile(centre + np.sqrt(share) * (every - centre), INTERVAL, axis=0)
    return Ratings(centre, low, high)


def bradley_terry(games: Games, *, resamples: int = 1000, seed: int = 0, ridge: float = RIDGE) -> Ratings:
    """Return the most likely ratings, and their interval over prompts that are drawn with replacement.

    ridge: λ. It keeps the rating of a model finite that won or lost every game.
    """
    _positive("resamples", resamples)
    games.require_connected()
    rating = strengths(games.points()[None], ridge)[0]
    rng = np.random.default_rng(seed)
    points = [games.points(times.astype(np.float64)) for times in _drawn(games, rng, resamples)]
    low, high = np.percentile(strengths(np.stack(points), ridge), INTERVAL, axis=0)
    return Ratings(rating, low, high)


def strengths(points: Floats, ridge: float = RIDGE) -> Floats:
    """Return the most likely Bradley-Terry ratings (B, M) of matrices of points (B, M, M).

    Newton's method on all of them at once. A step that would lower the likelihood is halved.
    """
    theta = np.zeros((len(points), points.shape[-1]))
    value = _likelihood(theta, points, ridge)
    for _ in range(200):
        p = _sigmoid(theta[:, :, None] - theta[:, None, :])
        played = points + points.swapaxes(1, 2)
        slope = (points - played * p).sum(2) - ridge * theta
        pull = played * p * (1 - p)
        curve = -pull
        diagonal = np.arange(theta.shape[1])
        curve[:, diagonal, diagonal] = pull.sum(2) - pull[:, diagonal, diagonal] + ridge
        step = np.linalg.solve(curve, slope[:, :, None])[:, :, 0]
        step -= step.mean(1, keepdims=True)  # only the ridge holds the mean, too weakly against rounding
        for _ in range(40):
            after = _likelihood(theta + step, points, ridge)
            worse = after < value - 1e-9 * np.abs(value)
            if not worse.any():
                break
            step[worse] /= 2
        theta, value = theta + step, after
        if np.abs(step).max() < 1e-9:
            break
    return START + SCALE * (theta - theta.mean(1, keepdims=True))


def _likelihood(theta: Floats, points: Floats, ridge: float) -> Floats:
    """Return the logarithm of the likelihood (B,), with the ridge."""
    # log σ(x) = −log(1 + e^−x), without overflow.
    logs = -np.logaddexp(0, theta[:, None, :] - theta[:, :, None])
    value: Floats = (points * logs).sum((1, 2)) - ridge / 2 * (theta**2).sum(1)
    return value


def _sigmoid(x: Floats) -> Floats:
    value: Floats = 0.5 * (1 + np.tanh(x / 2))  # without overflow
    return value


def _play(games: Games, order: npt.NDArray[np.int32], k: float, start: float) -> Floats:
    """Return the ratings (lanes, M) after the games have been played in the orders (T, lanes).

    A number one past the last game stands for no game: a seat of its own plays against itself and ties.
    """
    size, lanes = len(games.models), order.shape[1]
    a, b, score = np.append(games.a, size), np.append(games.b, size), np.append(games.score, 0.5)
    ratings = np.full(lanes * (size + 1), start, dtype=np.float64)
    seats = np.arange(lanes) * (size + 1)
    for now in order:
        i, j = seats + a[now], seats + b[now]
        expected = 1 / (1 + np.exp((ratings[j] - ratings[i]) / SCALE))
        change = k * (score[now] - expected)
        ratings[i] += change
        ratings[j] -= change
    return ratings.reshape(lanes, size + 1)[:, :size]


def _drawn(games: Games, rng: np.random.Generator, resamples: int) -> Iterator[Ints]:
    """Yield how often each game counts (N,) when as many prompts as there are, are drawn with replacement."""
    prompts = len(games.prompts)
    for _ in range(resamples):
        times = np.bincount(rng.integers(prompts, size=prompts), minlength=prompts)
        yield times[games.prompt]


def _blocks(count: int, entries: int) -> Iterator[int]:
    """Yield the sizes of blocks that make up `count`, each of at most ENTRIES entries where one fits."""
    most = max(1, ENTRIES // max(entries, 1))
    for begin in range(0, count, most):
        yield min(most, count - begin)


def _positive(what: str, given: int, least: int = 1) -> None:
    if given < least:
        raise UsageError(f"{what}={given}", f"at least {least}", f"give a larger {what}")
