"""Find the files of a run again, where its recipe names them relative to the folder in which it was trained.

A run records where its files lay, in identity.json. A name that leads nowhere from here is replaced by that
place, if that is still there: so a run opens from any folder, and one that was moved with its files opens
from the folder in which it was trained, as before.
"""

from pathlib import Path
from typing import Any

from graft import storage
from graft.errors import CheckpointError

FILE = "identity.json"
# Settings that name files, which count by what they hold, by the words for what it is.
PLACES = {
    "model": "the base",
    "data.train": "the training rows",
    "data.eval": "the held-out rows",
    "data.test": "the test rows",
    "data.template": "the template",
}


def place_of(where: str | list[str]) -> str | list[str]:
    """Return where files lie, for the record: from the root, if they are on this disk."""
    if isinstance(where, list):
        return [str(place_of(one)) for one in where]
    embedded = where.partition(":")[0] == "seedling"
    return where if embedded or not _exists(where) else str(Path(where).expanduser().absolute())


def find_again(settings: dict[str, Any], folder: Path) -> None:
    """Replace in a run's settings the names of files that lead nowhere from here.  folder: of the run."""
    try:
        known = storage.read_record(folder / FILE) or {}
    except (CheckpointError, OSError):  # whoever needs the record tells of it
        return
    for key, what in PLACES.items():
        section, _, leaf = key.rpartition(".")
        group = settings.get(section) if section else settings
        if isinstance(group, dict) and leaf in group:
            group[leaf] = _found(group[leaf], known.get(storage.PATH + what))


def _found(named: Any, place: Any) -> Any:
    """Return the place of what is named, if it is not found under its name."""
    if isinstance(named, list) and isinstance(place, list) and len(named) == len(place):
        return [_found(*pair) for pair in zip(named, place, strict=True)]
    if not (isinstance(named, str) and isinstance(place, str)) or _exists(named):
        return named
    there = Path(place)
    return place if there.is_absolute() and there.name == Path(named).name and _exists(place) else named


def _exists(where: str) -> bool:
    try:
        return Path(where).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # a name that no disk can have, a home that nobody has
        return False
