"""Rows in memory, kept in the folder of their run, so that its recipe.yaml can name them.

    rows/train.jsonl   one row a line, as they were given
    rows/rows.json     of every such file: what a row is called, their number, what they were, SHA-256

A row of these files is called by its number, `train row 17`, which is that of its line.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graft import storage
from graft.data.in_memory import kind_of_rows, write_rows
from graft.data.rows import Record, Reject
from graft.errors import CheckpointError

FOLDER, RECORD = "rows", "rows.json"


@dataclass(frozen=True)
class Given:
    """Rows in memory.

    rows: as they were given.  name: of one of them in messages, before its number.
    fixed: a run that has begun goes on only with the same ones.
    """

    rows: Any
    name: str
    fixed: bool = True


def keep(run: Path, given: Mapping[str, Given], *, begun: bool) -> None:
    """Write rows into the folder of a run, each under its file's name; a generator is read once.

    begun: the run has taken steps. Raises CheckpointError if other rows than now were given then; DataError
    for what holds no rows, and for a row that cannot be written.
    """
    if not given:
        return
    folder = run / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    known = storage.read_record(folder / RECORD) or {}
    for file, one in given.items():
        with storage.new_file(folder / file) as draft:
            with open(draft, "wb") as stream:
                count = write_rows(one.rows, stream, one.name)
            digest = storage.digest(draft)
            before = known.get(file, {}).get("sha256", digest)
            if begun and one.fixed and before != digest:
                raise CheckpointError(
                    f"{run} holds a run on other rows than these: its {one.name}s are in {folder / file}",
                    "the same rows at every start of a run",
                    "give the same rows, or choose another output",
                )
        kind = kind_of_rows(one.rows)
        known[file] = {"name": one.name, "rows": count, "given": kind, "sha256": digest}
    storage.write_record(folder / RECORD, known)


def called(path: Path, rows: Iterable[Record | Reject]) -> Iterator[Record | Reject]:
    """Yield the rows of a file with the names that rows in memory have; those of any other file unchanged."""
    known = _recorded(path)
    if known is None:
        yield from rows
        return
    for row in rows:
        yield replace(row, source=f"{known['name']} {row.source.rpartition(':')[2]}")


def told(files: Iterable[str]) -> list[str]:
    """Return of which files the rows were in memory, a sentence each."""
    known = ((name, _recorded(Path(name))) for name in files if not name.startswith("hub:"))
    return [
        f"{facts['rows']:,} {facts['name']}s were given in memory ({facts['given']}) and are kept in {name}"
        for name, facts in known
        if facts is not None
    ]


def _recorded(path: Path) -> Mapping[str, Any] | None:
    """Return what is recorded of a file of rows that were in memory; None for any other file."""
    if path.parent.name != FOLDER:
        return None
    try:
        facts = (storage.read_record(path.parent / RECORD) or {}).get(path.name)
    except CheckpointError:  # damaged: its rows are those of a file
        return None
    return facts if isinstance(facts, dict) and {"name", "rows", "given"} <= facts.keys() else None
