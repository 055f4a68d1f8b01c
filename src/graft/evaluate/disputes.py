"""Which pairs of answers the judges, or the two orders of one judge, do not agree on."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import pvariance

from graft.evaluate.judgements import Judgement


@dataclass(frozen=True)
class Item:
    """All that was said of two models' answers to a prompt.  pair: the models in alphabetical order."""

    prompt: str
    pair: tuple[str, str]
    judgements: tuple[Judgement, ...]

    @property
    def points(self) -> list[float]:
        """The points of the pair's first model in each judgement with a verdict: 1, ½ or 0."""
        return [points for one in self.judgements if (points := one.points_of_pair) is not None]

    @property
    def dispute(self) -> float:
        """The variance of the points: 0 where all say the same, ¼ where half prefer either answer."""
        return pvariance(self.points) if self.points else 0.0


def most_disputed(judgements: Iterable[Judgement], limit: int) -> list[Item]:
    """Return at most `limit` items, the most disputed first.

    Among equals those with more verdicts come first, and then each pair of models has its turn.
    """
    said: dict[tuple[str, tuple[str, str]], list[Judgement]] = {}
    for one in judgements:
        said.setdefault((one.prompt, one.pair), []).append(one)
    items = [Item(*key, tuple(own)) for key, own in said.items()]
    turns: Counter[tuple[float, int, tuple[str, str]]] = Counter()
    places = list[tuple[float, int, int]]()
    for item in items:
        turns[key := (-item.dispute, -len(item.points), item.pair)] += 1
        places.append((*key[:2], turns[key]))
    return [items[i] for i in sorted(range(len(items)), key=places.__getitem__)][:limit]
