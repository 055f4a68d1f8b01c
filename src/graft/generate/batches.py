"""Which prompts are continued together."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Protocol


class Sharing(Protocol):
    """What is asked of a base.

    mixable: whether rows of these adapters may share a batch.
    sharing: which rows may share a batch: "free", "length" (those of one length) or "none".
    """

    def mixable(self, names: Sequence[str | None]) -> bool: ...

    def sharing(self) -> str: ...


def batches(
    base: Sharing,
    adapters: Sequence[str | None],
    tokens: list[list[int]],
    rooms: Sequence[int],
    size: int,
) -> Iterator[tuple[list[int], int]]:
    """Yield (rows, room for new tokens), long prompts first, so that a lack of memory shows at once.

    rooms: for how many new tokens each row has room. Rows with the same room share a batch: a longer
    neighbour may not shorten an answer, nor a shorter one push it beyond the last position. Where the base
    cannot mix adapters or pad rows, those of one adapter or one length share a batch.
    """
    sharing = base.sharing() if size > 1 and len(tokens) > 1 else "free"
    size, mixed = (1 if sharing == "none" else size), base.mixable(adapters)

    def group(row: int) -> tuple[int, int, str]:
        length = len(tokens[row]) if sharing == "length" else 0
        return rooms[row], length, "" if mixed else repr(adapters[row])

    order = sorted(range(len(tokens)), key=lambda row: (-len(tokens[row]), group(row)))
    if not mixed:
        order.sort(key=group)
    for (limit, _, _), together in groupby(order, key=group):
        rows = list(together)
        yield from ((rows[i : i + size], limit) for i in range(0, len(rows), size))
