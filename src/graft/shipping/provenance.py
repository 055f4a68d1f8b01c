"""Name what an export was made from without showing where it lies on the machine that made it.

    a hub id                     stays, and so does seedling; its revision is known from the hub's cache
    a folder or a file           its last name, and a way to it from the export where that shows nothing else

A way such as `../models/llama` leads to it as long as both are moved together. It is left out where it would
climb above the home folder or the temporary folder: such a way spells out the absolute path.
"""

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graft.base.base import Base

EMBEDDED = "seedling"
CACHED = re.compile(r"models--(?P<id>[^/]+)/snapshots/(?P<revision>[^/]+)")  # a folder of the hub's cache
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def hub_id(base: "Base") -> str | None:
    """Return the hub id of a base; None for what came from elsewhere, seedling included."""
    if found := _cached(base):
        return found["id"].replace("--", "/", 1)
    local = base.files or base.name == EMBEDDED or Path(base.name).exists()
    return base.name if not local and HUB_ID.fullmatch(base.name) else None


def revision(base: "Base") -> str | None:
    """Return the commit of the hub's repository that a base was loaded from; None where it is unknown."""
    found = _cached(base)
    return found["revision"] if found else None


def public_name(base: "Base") -> str:
    """Return the name by which others may know this base: a hub id, seedling, or a folder's last name."""
    return hub_id(base) or last_name(base.name)


def last_name(path: str | Path) -> str:
    """Return the last name of a path, as it stands there or as the working folder tells it."""
    path = Path(path)
    return path.name or path.resolve().name or "model"


def name_for_peft(base: "Base") -> str:
    """Return the name of the base for adapter_config.json, from which PEFT loads it.

    A hub id, or a relative path as the user gave it: it leads there from the same working folder. Of other
    paths the last name.
    """
    given = Path(base.name)
    inside = not given.is_absolute() and ".." not in given.parts and not base.name.startswith("~")
    return hub_id(base) or (base.name if inside else last_name(given))


def is_nameless(base: "Base") -> bool:
    """Return whether the name in adapter_config.json does not lead to the base by itself."""
    return name_for_peft(base) != base.name and hub_id(base) is None


def way(to: Path, folder: Path) -> str | None:
    """Return the relative path from a folder to another place; None where it would show what lies above."""
    to, folder = to.resolve(), folder.resolve()
    try:
        shared = Path(os.path.commonpath([to, folder]))
    except ValueError:  # on two drives
        return None
    limits = [Path.home().resolve(), Path(tempfile.gettempdir()).resolve()]
    outside = shared == Path(shared.anchor) or any(shared in limit.parents for limit in limits)
    return None if outside else Path(os.path.relpath(to, folder)).as_posix()


def way_to_base(base: "Base", folder: Path) -> str | None:
    """Return the way from an export to its base; None for a name that needs none, or shows too much."""
    place = Path(base.name)
    return way(place, folder) if place.exists() and hub_id(base) is None else None


def whereabouts(facts: Mapping[str, Any], folder: Path, given: str | Path | None = None) -> str:
    """Return where something lies that a certificate names by "name" and "path".

    folder: of the certificate.  given: where the user says that it lies. Without it, the first of these that
    exists: the way from the folder, its name beside the folder; else the name alone.
    """
    if given is not None:
        return str(given)
    name = str(facts.get("name") or facts.get("folder") or "")
    path = facts.get("path")
    places: Sequence[Path] = [folder / path] if isinstance(path, str) else []
    found = next((place for place in places if place.exists()), None)
    if found is None and not Path(name).exists() and name != EMBEDDED:
        beside = folder.resolve().parent / name
        found = beside if name and beside.exists() else None
    return name if found is None else os.path.relpath(found)


def _cached(base: "Base") -> Mapping[str, str] | None:
    """Return {"id", "revision"} of a base that was loaded from the hub's cache."""
    places = [base.name, str(getattr(base.model.config, "name_or_path", "") or "")]
    places += [str(file) for file in base.files]
    matches = (CACHED.search(Path(place).as_posix()) for place in places)
    return next((match.groupdict() for match in matches if match), None)
