"""What the harness of faults consists of: cells, their stands, what came of their cases, three levels.

A cell is one kind of fault at one kind of victim ("crash / later save"). Its stand is what must be built
before a case can be tried, once for all of them. A case is a number: everything random in it follows from
that number, so a failure is repeated by its number alone.

    small      part of the normal suite, seconds      quick      minutes      release    hours, `make faults`
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

LEVELS = ("small", "quick", "release")
KEPT = 40  # failures that a tally keeps in words; all are counted


class Fault(Exception):
    """A promise that did not hold, in words."""


@dataclass(frozen=True)
class Outcome:
    """How a case ended that broke no promise.

    verdict: "held", or "harmless" where the damage provably changed nothing that was loaded.
    facts: numbers of which a tally keeps the largest.  sums: numbers that it adds up.
    """

    verdict: str = "held"
    facts: Mapping[str, float] = field(default_factory=dict)
    sums: Mapping[str, float] = field(default_factory=dict)


HELD, HARMLESS = Outcome(), Outcome("harmless")


class Stand(Protocol):
    """What the cases of a cell need.  total: how many there are, None if there is no end to them."""

    total: int | None

    def name(self, number: int) -> str:
        """Return a case in words."""

    def case(self, number: int) -> Outcome:
        """Try a case. Raises Fault if a promise is broken."""

    def close(self) -> None:
        """End what was started."""


@dataclass(frozen=True)
class Cell:
    """One kind of fault at one kind of victim.

    build: makes its stand in an empty folder.  counts: cases of each level, None for all there are.
    tool: whose promises are tried.
    """

    part: str
    what: str
    build: Callable[[Path], Stand]
    counts: Mapping[str, int | None]
    tool: str = "graft"

    @property
    def name(self) -> str:
        return f"{self.tool}.{self.part}.{self.what}".replace(" ", "-")

    def numbers(self, total: int | None, level: str) -> Sequence[int]:
        """Return the cases of a level: all, or a sample that is the same every time."""
        wanted = self.counts[level]
        if total is None:
            return range(wanted or 0)
        if wanted is None or wanted >= total:
            return range(total)
        return sorted(random.Random(self.name).sample(range(total), wanted))


def counts(small: int | None, quick: int | None, release: int | None) -> dict[str, int | None]:
    """Return the cases of each level; None: all there are."""
    return dict(zip(LEVELS, (small, quick, release), strict=True))


@dataclass
class Tally:
    """What came of the cases so far.

    failures: [number, case, what went wrong].  most, sums: see `Outcome`.
    """

    tried: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    failures: list[list[Any]] = field(default_factory=list)
    most: dict[str, float] = field(default_factory=dict)
    sums: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def failed(self) -> int:
        return self.verdicts["failed"]

    def add(self, stand: Stand, number: int) -> None:
        """Try a case and note how it ended. An exception that is no Fault is a failure, too."""
        began = time.perf_counter()
        outcome = Outcome("failed")
        try:
            outcome = stand.case(number)
        except Exception as error:
            kind = "" if isinstance(error, Fault) else f"{type(error).__name__}: "
            if len(self.failures) < KEPT:
                self.failures.append([number, stand.name(number), f"{kind}{error}"[:600]])
        self.tried += 1
        self.verdicts[outcome.verdict] += 1
        self.seconds += time.perf_counter() - began
        self.sums.update(outcome.sums)
        for key, value in outcome.facts.items():
            self.most[key] = max(value, self.most.get(key, value))

    def text(self) -> str:
        """Return the failures in words, for the message of a test."""
        lines = [f"{self.failed} of {self.tried} cases failed"]
        lines += [f"case {number} ({name}): {why}" for number, name, why in self.failures[:10]]
        return "\n".join(lines)


def tried(cell: Cell, folder: Path, level: str, more: Iterable[int] = ()) -> Tally:
    """Try the cases of a level in a folder, and further ones by number."""
    stand = cell.build(folder)
    tally = Tally()
    try:
        for number in [*cell.numbers(stand.total, level), *more]:
            tally.add(stand, number)
    finally:
        stand.close()
    return tally
