"""Read .gz files as a stream, and stop at one that unpacks to far more than any text does."""

import gzip
import io
from pathlib import Path

from graft.errors import DataError
from graft.sizes import size

RATIO = 100  # bytes that text unpacks to, for each packed one; JSON Lines with the same keys: 20
SMALL = 1 << 27  # bytes that any file may unpack to


class _Counted(io.RawIOBase):
    """The bytes in a .gz file, counted."""

    def __init__(self, path: Path) -> None:
        self._file = gzip.open(path, "rb")  # noqa: SIM115 (closed in `close`)
        self._path, self._read = path, 0
        self._most = max(SMALL, RATIO * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._read = 0
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        part = self._file.read1(len(buffer))
        buffer[: len(part)] = part
        self._read += len(part)
        if self._read > self._most:
            raise DataError(
                f"{self._path} unpacks to more than {size(self._most)}, {RATIO} times what it has",
                "rows of text, which pack to a tenth",
                "unpack it yourself if it is right, and name the unpacked file",
            )
        return len(part)

    def close(self) -> None:
        self._file.close()
        super().close()


def unpacked(path: Path) -> io.BufferedReader:
    """Return the stream in a .gz file. Reading raises DataError for one that unpacks to far too much."""
    return io.BufferedReader(_Counted(path), 1 << 16)
