"""Rows: requests in slots, in the order of their adapters, as forwards over several adapters take them."""

from dataclasses import dataclass

from graft.generate.request import Request

SHARED = 16  # tokens at least that make it worth to copy a prefix


@dataclass(eq=False)
class Row:
    """A request in a slot.

    length: positions that it may take.  read: tokens of its prompt that are in the cache.
    """

    request: Request
    slot: int
    length: int
    read: int = 0

    @property
    def key(self) -> tuple[bool, str]:
        """The place of its adapter in the order of `route.spans`."""
        return self.request.adapter is not None, self.request.adapter or ""


def common(prompt: list[int], other: list[int]) -> int:
    """Return how many tokens at the start of `prompt`, without its last one, `other` begins with.

    >>> common([1, 2, 3, 4], [1, 2, 5])
    2
    """
    low, high = 0, min(len(prompt) - 1, len(other))
    if prompt[: min(SHARED, high)] == other[: min(SHARED, high)]:
        low = min(SHARED, high)
    else:
        high = min(SHARED, high)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if prompt[low:middle] == other[low:middle] else (low, middle - 1)
    return low


def join(rows: list[Row], row: Row) -> None:
    """Add a row to rows in the order of their adapters; one of each adapter behind it changes its place."""
    place, moved = len(rows), row
    rows.append(row)
    while place and rows[place - 1].key > row.key:
        start = next(i for i in range(place) if rows[i].key == rows[place - 1].key)
        rows[place] = rows[start]
        place = start
    rows[place] = moved


def leave(rows: list[Row], place: int) -> None:
    """Take a row out. The last one of its adapter, and of each behind it, fills the gap before it."""
    while place < len(rows) - 1:
        key = rows[place].key if rows[place].key == rows[place + 1].key else rows[place + 1].key
        end = max(i for i in range(len(rows)) if rows[i].key == key)
        rows[place] = rows[end]
        place = end
    rows.pop()
