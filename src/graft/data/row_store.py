"""Rows that may be more than memory holds: a list while they are few, a file on the disk beyond that.

Whoever reads rows takes a `Sequence[Row]` and builds no list of all of them: `pick` chooses some, `changed`
brings each into another form when it is read.
"""

import json
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from graft.data.rows import Row, alike, as_chat, file_of, talking
from graft.data.scratch import Scratch

MOST = 1 << 25  # characters of the texts of rows that stay in memory


class RowStore(Sequence[Row]):
    """Rows in the order in which they are added."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._size = 0
        self._file: Scratch | None = None
        self._ends = array("q")
        self._odd: dict[int, Row] = {}  # with values that JSON has not, such as dates of Parquet files

    def append(self, row: Row) -> None:
        """Add one row."""
        if self._file is not None:
            self._write([row])
            return
        self._rows.append(row)
        self._size += sum(map(len, row.texts()))
        if self._size > MOST:
            self._file = Scratch()
            self._write(self._rows)
            self._rows = []

    def rows(self) -> Sequence[Row]:
        """Return the rows: a list if they are in memory."""
        return self._rows if self._file is None else self

    def _write(self, rows: Iterable[Row]) -> None:
        assert self._file is not None
        for row in rows:
            try:
                raw = _packed(row)
            except (TypeError, ValueError, UnicodeEncodeError):
                raw = b""
                self._odd[len(self._ends)] = row
            self._file.append(raw)
            self._ends.append(self._file.size)

    def __len__(self) -> int:
        return len(self._rows) if self._file is None else len(self._ends)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        i = range(len(self))[i]
        if self._file is None:
            return self._rows[i]
        if i in self._odd:
            return self._odd[i]
        begin = self._ends[i - 1] if i else 0
        return _unpacked(self._file.read(begin, self._ends[i] - begin))


class _View(Sequence[Row]):
    """Some rows of others, or each in another form.  places: of numpy, where they are; None: all."""

    def __init__(
        self,
        rows: Sequence[Row],
        places: Any = None,
        change: Callable[[Row], Row] | None = None,
    ) -> None:
        self._rows, self._places, self._change = rows, places, change

    def __len__(self) -> int:
        return len(self._rows if self._places is None else self._places)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        i = range(len(self))[i]
        row = self._rows[i if self._places is None else int(self._places[i])]
        return self._change(row) if self._change else row


def pick(rows: Sequence[Row], places: Iterable[int]) -> Sequence[Row]:
    """Return the rows at these places, in this order: a list if they are one."""
    if isinstance(rows, list):
        return [rows[i] for i in places]
    return _View(rows, np.fromiter(places, dtype=np.int64))


def changed(rows: Sequence[Row], change: Callable[[Row], Row]) -> Sequence[Row]:
    """Return rows in another form: a list if they are one, else each when it is read."""
    return [change(row) for row in rows] if isinstance(rows, list) else _View(rows, change=change)


def where(rows: Sequence[Row], wanted: Callable[[Row], bool]) -> Sequence[Row]:
    """Return the rows of which something is true."""
    return pick(rows, [i for i, row in enumerate(rows) if wanted(row)])


def _packed(row: Row) -> bytes:
    """Return a row as JSON, with the places of the tuples, which JSON has not, in its value."""
    value: Any = row.value
    tuples = (
        [i for i, part in enumerate(value) if isinstance(part, tuple)] if isinstance(value, tuple) else None
    )
    fields = [row.source, row.kind, value, row.tools, row.first, row.unused, tuples]
    return json.dumps(fields, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _unpacked(raw: bytes) -> Row:
    source, kind, value, tools, first, unused, tuples = json.loads(raw.decode("utf-8", "surrogatepass"))
    if tuples is not None:
        value = tuple(tuple(part) if i in tuples else part for i, part in enumerate(value))
    return Row(source, kind, value, tools, first, tuple(unused))


def all_alike(rows: Sequence[Row]) -> Sequence[Row]:
    """Return rows of which no file has conversations beside prompts with their answers; see `rows.alike`."""
    if isinstance(rows, list):
        return alike(rows)
    files = talking(rows)
    return changed(rows, lambda row: as_chat(row) if file_of(row) in files else row) if files else rows


def digests(rows: Iterable[Row], of: Callable[[Row], bytes] = Row.key) -> Any:
    """Return 8 bytes that depend on the content of each row, as numbers: (N,) uint64 of numpy.

    of: `Row.key`, or `Row.group`.
    """
    return as_numbers(of(row) for row in rows)


def as_numbers(digests: Iterable[bytes]) -> Any:
    """Return digests of 8 bytes as (N,) uint64 of numpy; they are in order as the digests are."""
    return np.frombuffer(array("Q", (int.from_bytes(digest, "big") for digest in digests)), dtype=np.uint64)
