"""Compare a model's files with the digests that Graft wrote beside them, while the model is loading.

Hashing takes a thread of its own: it reads what loading reads, so the disk is read once. A file that has not
changed since it was hashed last is not read again (`storage.known_digest`).
"""

import threading
from pathlib import Path
from types import TracebackType

from graft import storage
from graft.errors import ModelError


class Comparison:
    """The comparison of a model's folder, or of a GGUF file, with the certificate or manifest beside it.

    It begins at once. As a context it raises, at the end of the block, ModelError for files that were
    changed: also in the place of an error of the block, whose cause that may be.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None
        if storage.is_comparing():
            self._thread = threading.Thread(target=self._compare, daemon=True)  # no exit waits for it
            self._thread.start()

    def wait(self) -> None:
        """Return when all files were compared. Raises ModelError for one that was changed."""
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def __enter__(self) -> "Comparison":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, Exception):
            self.wait()

    def _compare(self) -> None:
        path = self._path
        try:
            if path.is_file():
                storage.require_unchanged(path.parent, ModelError, lambda name: name == path.name)
            else:
                storage.require_unchanged(path, ModelError)
        except Exception as error:  # raised again where somebody waits
            self._error = error
