"""A file of answers that grows while they come, and survives a kill: the same call goes on where it was.

answers.jsonl.part   a sealed line that says what is asked, then one for each answer, as it came
answers.jsonl        all rows in their order, written whole at the end; then the part is removed
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from graft import storage
from graft.errors import CheckpointError, UsageError, notice


class AnswerFile:
    """The answers that have come, by the number of the row.

    path: of the whole file.  facts: what must be the same when the same call goes on, as JSON.
    free: facts that may be decided anew by whoever begins, such as a seed nobody chose; those of the file
    count where it goes on.
    """

    def __init__(
        self, path: Path, facts: Mapping[str, Any], free: Mapping[str, Any], file: IO[bytes]
    ) -> None:
        self.path, self.facts, self.free = path, dict(facts), dict(free)
        self.kept: dict[int, dict[str, Any]] = {}
        self._file = file

    def add(self, row: int, fields: dict[str, Any]) -> None:
        """Keep the answer to a row. It is on the disk when this returns."""
        self._append({"row": row, "fields": fields})
        self.kept[row] = fields

    def _append(self, entry: dict[str, Any]) -> None:
        with storage.told_as_of(part_of(self.path)):
            self._file.write(storage.seal(json.dumps(entry, default=str).encode()) + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def _begin(self) -> None:
        """Read what an earlier start has kept, cut a torn end off, or write the first line."""
        self._file.seek(0)
        lines = self._file.read().split(b"\n")
        torn = lines.pop()  # what follows the last line break
        first = _opened(lines[0]) if lines else None
        if first is None:
            if lines or torn:
                notice(f"{part_of(self.path)} has no sound beginning: all rows are asked again")
            self._file.truncate(0)
            self._append({"facts": self.facts, "free": self.free})
            storage.sync(self.path.parent)
            return
        if changed := storage.changes(first["facts"], self.facts):
            raise CheckpointError(
                f"{part_of(self.path)} holds answers of another batch ({changed})",
                "the same rows, adapters and settings as when it was begun",
                "give them again, or another --out; --force begins anew",
            )
        self.free = first["free"]
        entries = [_opened(line) for line in lines[1:]]
        self.kept = {entry["row"]: entry["fields"] for entry in entries if entry is not None}
        if broken := sum(entry is None for entry in entries):
            notice(f"{broken} lines of {part_of(self.path)} are damaged: these rows are asked again")
        if torn:
            self._file.truncate(self._file.tell() - len(torn))

    def finish(self, rows: int) -> None:
        """Write all answers in the order of the rows, and remove the part."""
        lines = (json.dumps(self.kept[row], ensure_ascii=False, default=str) for row in range(rows))
        storage.replace(self.path, "".join(f"{line}\n" for line in lines).encode(errors="replace"))
        storage.clear(part_of(self.path), notice)


@contextmanager
def answer_file(
    path: Path, facts: Mapping[str, Any], free: Mapping[str, Any], *, force: bool = False
) -> Iterator[AnswerFile]:
    """Hold a file of answers inside the block, with what an earlier start has kept of it.

    force: begin anew.  Raises UsageError if the whole file is there, CheckpointError if the part is another
    batch's.
    """
    with storage.named_errors("while writing answers", path), storage.output_locked(path):
        require_new(path, force=force)
        if force:
            storage.remove(part_of(path))
        with open(part_of(path), "ab+") as file:
            answers = AnswerFile(path, facts, free, file)
            answers._begin()
            yield answers


def part_of(path: Path) -> Path:
    """Return the file that holds the answers while they come."""
    return path.with_name(f"{path.name}.part")


def require_new(path: Path, *, force: bool) -> None:
    """Raise UsageError if a file of answers is there already, or cannot be written."""
    storage.require_file(path)
    if path.exists() and not force:
        raise UsageError(f"{path} exists", "a new file", "give another --out, or --force")


def _opened(line: bytes) -> dict[str, Any] | None:
    """Return what stands in a line; None for one that was torn or changed."""
    body = storage.unseal(line)
    if body is None:
        return None
    entry: dict[str, Any] = json.loads(body)
    return entry
