"""Two models face to face: how often each judge prefers the one to the other.

The orders in which a judge saw two answers to a prompt are averaged, so each prompt counts once. A prompt is
tied where the judge says so, or where its two orders cancel.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from graft.evaluate.agreement import Estimate, mean_over_prompts
from graft.evaluate.judgements import Judgement, outcomes


@dataclass(frozen=True)
class WinRate:
    """What one judge says of two models.

    won: points of the first model per prompt, 0 … 1, with the 95 % interval over prompts; a tie is half a
    point, and None means that no prompt has a verdict.  wins, ties, losses: prompts, of the first model.
    unread: judgements without a verdict, which count nowhere else.
    """

    judge: str
    first: str
    second: str
    won: Estimate | None
    wins: int
    ties: int
    losses: int
    unread: int

    @property
    def lost(self) -> Estimate | None:
        """The points of the second model."""
        won = self.won
        return won and Estimate(1 - won.value, 1 - won.high, 1 - won.low, won.count)

    def json(self) -> dict[str, Any]:
        """Return everything as JSON values, with the shares of the prompts."""
        prompts = self.wins + self.ties + self.losses
        counts = {"wins": self.wins, "ties": self.ties, "losses": self.losses}
        shares = {name: count / prompts if prompts else None for name, count in counts.items()}
        return {**asdict(self), "prompts": prompts, "shares": shares}


def win_rates(judgements: Iterable[Judgement], first: str, second: str, *, seed: int = 0) -> list[WinRate]:
    """Return what each judge says of two models; judges that saw no pair of them are left out."""
    by_judge: dict[str, list[Judgement]] = {}
    for one in judgements:
        if {one.first, one.second} == {first, second}:
            by_judge.setdefault(one.judge, []).append(one)
    return [_win_rate(judge, own, first, second, seed) for judge, own in sorted(by_judge.items())]


def _win_rate(judge: str, judgements: list[Judgement], first: str, second: str, seed: int) -> WinRate:
    points = {
        prompt: value if pair[0] == first else 1 - value
        for (_, prompt, pair), value in outcomes(judgements).items()
    }
    values = list(points.values())
    return WinRate(
        judge,
        first,
        second,
        mean_over_prompts(list(points), values, seed=seed) if values else None,
        sum(value > 0.5 for value in values),
        sum(value == 0.5 for value in values),
        sum(value < 0.5 for value in values),
        sum(one.verdict is None for one in judgements),
    )
