"""How far judgements can be trusted: agreement between judges, and what sways a judge besides the answers.

    Kendall     τ_b = (C − D) / √((n − ties in x)(n − ties in y)), over the n pairs of systems (Kendall 1945)
    Spearman    ρ = the correlation of the ranks, equal values with their mean rank (Spearman 1904)
    Fleiss      κ = (P − P_e) / (1 − P_e):  P the share of pairs of judges that say the same of an item,
                P_e the same by chance, Σ p_c² over the classes (Fleiss 1971)

Shares and ratios have a 95 % interval over prompts that are drawn with replacement (Efron 1979).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from graft.errors import DataError, one_of
from graft.evaluate.judgements import FIRST, TIE, Judgement, games, outcomes
from graft.evaluate.tournament import INTERVAL, Floats, strengths

RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A share or a ratio with its 95 % interval.  count: of the judgements or pairs behind it."""

    value: float
    low: float
    high: float
    count: int


def kendall_tau(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the rank correlation τ_b of two values of each system, −1 … 1; NaN if all of one are equal."""
    a, b = (np.sign(np.subtract.outer(v, v))[np.triu_indices(len(v), 1)] for v in (x, y))
    with np.errstate(invalid="ignore"):
        return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the correlation ρ of the ranks of two values of each system; NaN if all of one are equal."""
    a, b = (ranks - ranks.mean() for ranks in (_ranks(x), _ranks(y)))
    with np.errstate(invalid="ignore"):
        return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def _ranks(values: Sequence[float]) -> Floats:
    """Return the ranks of values from 0; equal ones have the mean of theirs."""
    v = np.asarray(values, dtype=np.float64)
    ranks: Floats = (v[:, None] > v).sum(1) + ((v[:, None] == v).sum(1) - 1) / 2
    return ranks


def fleiss_kappa(counts: Sequence[Sequence[int]]) -> float:
    """Return κ of counts (items, classes): how many judges put each item into each class.

    Every item has the same number of judges, two or more. NaN if all judges always name one class.
    """
    table = np.asarray(counts, dtype=np.float64)
    judges = table.sum(1)
    if not len(table) or judges[0] < 2 or (judges != judges[0]).any():
        raise DataError(
            f"items with {sorted({int(n) for n in judges})} judges",
            "items that the same number of judges, two or more, put into classes",
            "leave out the items that some judges did not see",
        )
    n = judges[0]
    same = ((table**2).sum(1) - n) / (n * (n - 1))
    chance = ((table.sum(0) / table.sum()) ** 2).sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        return float((same.mean() - chance) / (1 - chance))


@dataclass(frozen=True)
class Agreement:
    """How far judges agree.

    items: pairs of answers that every judge judged.  same: share of pairs of judges that say the same of one.
    kappa: Fleiss's, of a wins, tie, b wins.  kendall, spearman: of each two judges' ratings of the models
    (Bradley-Terry), {(judge, judge): value}.
    """

    judges: tuple[str, ...]
    items: int
    same: float
    kappa: float
    kendall: dict[tuple[str, str], float]
    spearman: dict[tuple[str, str], float]


def agreement(judgements: Iterable[Judgement]) -> Agreement:
    """Return how far the judges agree on the pairs that all of them judged.

    What a judge says of a pair is its mean over both orders: a win, or a tie if the orders cancel.
    Raises DataError if there are not two judges, or if no pair was judged by all.
    """
    said = outcomes(judgements := list(judgements))
    by_item: dict[tuple[str, tuple[str, str]], dict[str, float]] = defaultdict(dict)
    for (judge, prompt, pair), points in said.items():
        by_item[prompt, pair][judge] = points
    judges = sorted({judge for judge, *_ in said})
    common = [item for item in by_item if len(by_item[item]) == len(judges)]
    if len(judges) < 2 or not common:
        raise DataError(
            f"{len(judges)} judges and {len(common)} pairs that all of them judged",
            "two judges, and a pair of answers that both judged",
            "put the judgements of several judges on the same answers into one file",
        )
    classes = [Counter(int(np.sign(p - 0.5)) for p in by_item[item].values()) for item in common]
    counts = [[one[sign] for sign in (1, 0, -1)] for one in classes]
    n = len(judges)
    same = float(np.mean([sum(c * (c - 1) for c in row) / (n * (n - 1)) for row in counts]))
    ratings = _ratings(judgements, judges, set(common))
    pairs = list(combinations(judges, 2))
    return Agreement(
        tuple(judges),
        len(common),
        same,
        fleiss_kappa(counts),
        {(one, two): kendall_tau(ratings[one], ratings[two]) for one, two in pairs},
        {(one, two): spearman(ratings[one], ratings[two]) for one, two in pairs},
    )


def _ratings(
    judgements: Sequence[Judgement], judges: Sequence[str], items: set[tuple[str, tuple[str, str]]]
) -> dict[str, list[float]]:
    """Return every judge's ratings of the models, of the judgements on these items alone."""
    ratings = {}
    for judge in judges:
        own = games([one for one in judgements if one.judge == judge and (one.prompt, one.pair) in items])
        own.require_connected()
        # Rounded: equal ratings must not be ranked by what the ridge moves them, less than 0.001 points.
        ratings[judge] = [round(float(r), 2) for r in strengths(own.points()[None])[0]]
    return ratings


@dataclass(frozen=True)
class OrderBias:
    """What the order does to verdicts, over pairs that a judge saw in both orders.

    first: points of the answer that is shown first, per judgement; ½ is no bias.
    wins, ties: the share of judgements that prefer the first answer, and of ties.
    consistent: the share of pairs of which both orders say the same.
    """

    first: Estimate
    wins: float
    ties: float
    consistent: Estimate


def order_bias(judgements: Iterable[Judgement], *, seed: int = 0) -> OrderBias | None:
    """Return how much a judge favours the answer that it sees first; None if no pair was seen both ways.

    Only such pairs count: there each answer is the first one as often as the second.
    """
    seen: dict[tuple[str, str, tuple[str, str]], dict[str, Judgement]] = defaultdict(dict)
    for one in judgements:
        if one.verdict is not None:
            seen[one.judge, one.prompt, one.pair][one.first] = one
    both = [tuple(orders.values()) for orders in seen.values() if len(orders) == 2]
    if not both:
        return None
    each = [one for two in both for one in two]
    prompts = [one.prompt for one in each]
    return OrderBias(
        mean_over_prompts(prompts, [one.points or 0.0 for one in each], seed=seed),
        float(np.mean([one.verdict == FIRST for one in each])),
        float(np.mean([one.verdict == TIE for one in each])),
        mean_over_prompts(
            [one.prompt for one, _ in both],
            [float(one.points_of_pair == two.points_of_pair) for one, two in both],
            seed=seed,
        ),
    )


def length_bias(judgements: Iterable[Judgement], *, seed: int = 0) -> Estimate | None:
    """Return the points that the longer answer gets, per judgement; ½ is no bias.

    Of judgements with `characters`, where the lengths differ; None if there are none. A longer answer may be
    the better one: the bias is a lead to follow, not a proof.
    """
    told = [
        (one.prompt, points if one.characters[0] > one.characters[1] else 1 - points)
        for one in judgements
        if (points := one.points) is not None and one.characters and one.characters[0] != one.characters[1]
    ]
    return mean_over_prompts([p for p, _ in told], [v for _, v in told], seed=seed) if told else None


@dataclass(frozen=True)
class Relative:
    """The marks of a model in per cent of those of another one, on the same prompts.

    value: the mean of the two orders.  first, second: where the model's answer was shown first, and second;
    None where it never was.
    """

    value: Estimate
    first: float | None
    second: float | None


def relative_scores(judgements: Iterable[Judgement], to: str, *, seed: int = 0) -> dict[str, Relative]:
    """Return {model: its marks in per cent of those of `to`}, of judgements with scores of both.

    Σ marks of the model / Σ marks of the other, in each order; then the mean of the orders (Dettmers et al.
    2023, arXiv 2305.14314, §5.2). Raises UsageError if `to` has no marks.
    """
    marks: dict[str, dict[int, list[tuple[str, float, float]]]] = defaultdict(lambda: {0: [], 1: []})
    scored = [(one, one.scores) for one in judgements if one.scores]
    one_of("relative to", to, sorted({name for one, _ in scored for name in one.pair}))
    for one, scores in scored:
        if to in one.pair:
            place = int(one.first == to)  # where the other model's answer stood
            other = one.second if place else one.first
            marks[other][place].append((one.prompt, scores[place], scores[1 - place]))
    return {model: _relative(orders, seed) for model, orders in sorted(marks.items())}


def _relative(orders: dict[int, list[tuple[str, float, float]]], seed: int) -> Relative:
    """Return the ratio of marks.  orders: {place: rows (prompt, mark, mark of the other)}."""
    index = {prompt: 0 for rows in orders.values() for prompt, *_ in rows}
    index = {prompt: i for i, prompt in enumerate(index)}
    draws = _draws(len(index), seed)
    means, resampled = {}, []
    for place, rows in orders.items():
        if rows:
            sums = np.zeros((2, len(index)))
            for prompt, *pair in rows:
                sums[:, index[prompt]] += pair
            if (sums < 0).any() or not sums[1].sum():
                raise DataError(
                    "marks below zero, or only zeros, have no ratio",
                    "marks such as 1 to 10",
                    "leave out --relative-to",
                )
            means[place] = 100 * float(sums[0].sum() / sums[1].sum())
            resampled.append(100 * (draws @ sums[0]) / (draws @ sums[1]))
    low, high = np.nanpercentile(np.mean(resampled, axis=0), INTERVAL)
    value = Estimate(
        float(np.mean(list(means.values()))), float(low), float(high), sum(map(len, orders.values()))
    )
    return Relative(value, means.get(0), means.get(1))


def mean_over_prompts(prompts: Sequence[str], values: Sequence[float], *, seed: int = 0) -> Estimate:
    """Return the mean of values, with its interval over the prompts that they belong to."""
    index = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    places = [index[prompt] for prompt in prompts]
    sums, counts = np.bincount(places, values), np.bincount(places)
    draws = _draws(len(index), seed)
    low, high = np.percentile((draws @ sums) / (draws @ counts), INTERVAL)
    return Estimate(float(np.mean(values)), float(low), float(high), len(values))


def _draws(prompts: int, seed: int) -> Floats:
    """Return how often each prompt is drawn (RESAMPLES, prompts) when as many are drawn with replacement."""
    share = np.full(prompts, 1 / prompts)
    return np.random.default_rng(seed).multinomial(prompts, share, RESAMPLES).astype(np.float64)
