"""Bytes that need no memory: a file on the disk of the cache that nobody sees, and arrays of numbers in it.

Where rows are many, their texts and their tokens lie there. What is read of it is copied, never mapped: pages
of a mapped file would count as memory of the process.
"""

import sys
import tempfile
import threading
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from graft import storage

MOST = 1 << 23  # bytes of an array that stay in memory before they are written
BLOCK = 1 << 20  # numbers that are read at one time


class Scratch:
    """A file that grows at its end and is read anywhere. It is gone when the last who uses it is.

    path: a file that is only read; None: a new one without a name.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._lock = threading.Lock()
        self._file: IO[bytes] = open(path, "rb") if path else _nameless()  # noqa: SIM115 (lives as long as this)
        self.size = path.stat().st_size if path else 0

    def append(self, raw: Any) -> int:
        """Write bytes at the end; return where they begin."""
        with self._lock:
            begin = self._file.seek(self.size)
            self._file.write(raw)
            self.size += len(raw)
        return begin

    def read(self, begin: int, size: int) -> bytes:
        """Return bytes of the file."""
        with self._lock:
            self._file.seek(begin)
            return self._file.read(size)


def _nameless() -> IO[bytes]:
    """Return a new temporary file: beside the cache, whose disk has room, or where the system has them."""
    folder = storage.cache_folder("data")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=folder)
    except OSError:
        return tempfile.TemporaryFile()


class Numbers(Sequence[int]):
    """A growing array of integers, of which no more than MOST bytes are in memory; the first lie in a file.

    code: the letter of their type, as in `array`.  file, begin, stored: where the first ones lie already.
    """

    def __init__(
        self,
        code: str,
        values: Iterable[int] = (),
        *,
        file: Scratch | None = None,
        begin: int = 0,
        stored: int = 0,
    ) -> None:
        self.code = code
        self._file, self._begin, self._stored = file, begin, stored
        self._last = array(code, values)

    def append(self, value: int) -> None:
        """Add one number."""
        self._last.append(value)
        self._spill()

    def extend(self, values: Iterable[int]) -> None:
        """Add several numbers."""
        self._last.extend(values)
        self._spill()

    def _spill(self) -> None:
        if len(self._last) * self._last.itemsize < MOST:
            return
        if self._file is None:
            self._file = Scratch()
        self._file.append(self._last.tobytes())
        self._stored += len(self._last)
        self._last = array(self.code)

    def __len__(self) -> int:
        return self._stored + len(self._last)

    def __getitem__(self, i: Any) -> Any:
        if not isinstance(i, slice):
            i = range(len(self))[i]
            return self._between(i, i + 1)[0]
        begin, end, step = i.indices(len(self))
        return self._between(begin, max(begin, end))[::step] if step > 0 else self._between(0, len(self))[i]

    def _between(self, begin: int, end: int) -> array:
        """Return a part as an array in memory."""
        if begin >= self._stored:
            return self._last[begin - self._stored : end - self._stored]
        found = array(self.code)
        size = found.itemsize
        if self._file is not None:
            upto = min(end, self._stored)
            found.frombytes(self._file.read(self._begin + begin * size, (upto - begin) * size))
        return found + self._last[: max(0, end - self._stored)]

    def blocks(self) -> Iterator[array]:
        """Yield all numbers in order, in arrays of at most BLOCK."""
        for begin in range(0, len(self), BLOCK):
            yield self._between(begin, min(begin + BLOCK, len(self)))

    def __iter__(self) -> Iterator[int]:
        for block in self.blocks():
            yield from block

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Numbers) or (self.code, len(self)) != (other.code, len(other)):
            return NotImplemented if not isinstance(other, Numbers) else False
        return all(a == b for a, b in zip(self.blocks(), other.blocks(), strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Numbers({self.code!r}, {self[:].tolist()})"

    def count(self, value: int) -> int:
        """Return how often a number occurs."""
        return sum(int(np.count_nonzero(np.frombuffer(b, b.typecode) == value)) for b in self.blocks())

    def largest(self) -> int:
        """Return the largest number; 0 of none."""
        return max((int(np.frombuffer(block, block.typecode).max()) for block in self.blocks()), default=0)


class Sources(Sequence[str]):
    """Names of rows, `file:line`, each as the number of its file and that of its line."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.files: list[str] = []
        self.file, self.line = array("i"), array("q")
        self._known: dict[str, int] = {}
        for name in names:
            self.append(name)

    @classmethod
    def of(cls, files: list[str], file: array, line: array) -> "Sources":
        """Build the names from their numbers."""
        sources = cls()
        sources.files, sources.file, sources.line = files, file, line
        sources._known = {name: i for i, name in enumerate(files)}
        return sources

    def append(self, name: str) -> None:
        """Add one name."""
        file = name.rstrip("0123456789")
        digits = name[len(file) :]
        if not digits or digits[0] == "0" or len(digits) > 18:  # no number that can be written again
            file, digits = name, "-1"
        number = self._known.get(file)
        if number is None:
            number = self._known[sys.intern(file)] = len(self.files)
            self.files.append(file)
        self.file.append(number)
        self.line.append(int(digits))

    def __len__(self) -> int:
        return len(self.file)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        file, line = self.files[self.file[i]], self.line[i]
        return file if line < 0 else f"{file}{line}"

    def __eq__(self, other: object) -> bool:
        return (
            len(self) == len(other) and all(map(str.__eq__, self, other))
            if isinstance(other, Sequence)
            else False
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Sources({list(self)})"
