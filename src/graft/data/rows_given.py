"""Recipes that hold rows themselves, where others name files: `{"data": {"train": [{...}, ...]}}`.

The rows are written into the folder of the run (`data.kept_rows`), and the recipe names that file. So its
recipe.yaml repeats the run, and the same call with the same rows continues it.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from graft.data import kept_rows
from graft.data.in_memory import is_rows, kind_of_rows
from graft.data.kept_rows import FOLDER, Given
from graft.errors import DataError
from graft.recipe import read
from graft.recipe.chain import read_chain

SPLITS = {"train": True, "eval": True, "test": False}  # whether a resumed run must have the same rows


@dataclass
class RowsGiven:
    """The rows that a recipe held.  run: the folder in which they are kept.  files: by their names there."""

    run: Path = Path()
    files: dict[str, Given] = field(default_factory=dict)

    def keep(self) -> None:
        """Write the rows into the folder. Raises CheckpointError if its run has begun with other rows."""
        kept_rows.keep(self.run, self.files, begun=_begun(self.run))


def taken_out(
    recipe: Any, overrides: Iterable[str] = (), folder: Path | None = None
) -> tuple[Any, RowsGiven]:
    """Return a recipe with the names of files in the place of rows, and these rows.

    Anything but a dict is returned as it is.  overrides: as for `graft.run`.  folder: where rows are to be
    kept, by default that of the run.
    """
    if not isinstance(recipe, Mapping):
        return recipe, RowsGiven()
    files: dict[str, Given] = {}
    plain = _named(recipe, lambda file: file, files)
    if not files:
        return plain, RowsGiven()
    if folder is None:
        overrides = list(overrides)
        chain = read_chain(plain, overrides)
        folder = Path(read(plain, overrides).output if chain is None else chain.output)
    return _named(recipe, lambda file: str(folder / FOLDER / file), {}), RowsGiven(folder, files)


@contextlib.contextmanager
def lent(recipe: Any) -> Iterator[Any]:
    """Yield a recipe that names files in the place of rows in memory, for the block alone.

    Raises DataError for rows that could not be read again afterwards, such as those of a generator.
    """
    with tempfile.TemporaryDirectory(prefix="graft-rows-") as home:
        plain, given = taken_out(recipe, folder=Path(home))
        for one in given.files.values():
            if isinstance(one.rows, Iterator):
                raise DataError(
                    f"the {one.name}s are {kind_of_rows(one.rows)}, which can be read only once",
                    "rows that are still there for the run",
                    "give a list, or a file",
                )
        given.keep()
        yield plain


def _named(recipe: Mapping[str, Any], place: Callable[[str], str], files: dict[str, Given]) -> dict[str, Any]:
    """Return a recipe with names instead of rows, which are added to `files`.  place: a file's name there."""
    named = dict(recipe)
    if isinstance(recipe.get("data"), Mapping):
        named["data"] = _section(recipe["data"], "", place, files)
    if isinstance(stages := recipe.get("stages"), list | tuple):
        named["stages"] = list(stages)
        for number, entry in enumerate(stages, 1):
            if isinstance(entry, Mapping) and isinstance(entry.get("data"), Mapping):
                data = _section(entry["data"], f"stage {number} ", place, files)
                named["stages"][number - 1] = {**entry, "data": data}
    return named


def _section(
    data: Mapping[str, Any], of: str, place: Callable[[str], str], files: dict[str, Given]
) -> dict[str, Any]:
    """Return a recipe's `data:` with names instead of rows.  of: the stage, for messages."""
    named = dict(data)
    for key in SPLITS.keys() & data.keys():
        value = data[key]
        if is_rows(value):
            file = f"{of}{key}.jsonl".replace(" ", "-")
            files[file] = Given(value, f"{of}{key} row", SPLITS[key])
            named[key] = place(file)
        elif isinstance(value, PurePath):
            named[key] = str(value)
        elif isinstance(value, list | tuple):
            named[key] = [str(entry) for entry in value]
    return named


def _begun(folder: Path) -> bool:
    """Return whether the run of a folder, or one of several stages in it, has taken steps."""
    return any(
        found
        for at in ("", "*/")
        for pattern in (f"{at}finished.json", f"{at}checkpoints/step-*")
        for found in folder.glob(pattern)
    )
