"""Adapters that may be served: the folders under one root, known by names that are never paths.

A name is that of a folder. Whoever asks for an adapter by HTTP gives a name, and it is looked up in what was
found here; nothing that comes from outside is ever joined to a path.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from graft.errors import AdapterError, UsageError, notice, one_of
from graft.formats.peft import CONFIG, WEIGHTS
from graft.recipe.chain import last_finished
from graft.storage import known_digest

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Found:
    """An adapter's folder.

    name: of the model that it is served as.  kind: PEFT's type of it, in small letters.
    digest: SHA-256 of its tensors, and of its settings.  created: seconds since 1970.
    """

    name: str
    folder: Path
    kind: str
    digest: str
    created: int


def found_in(root: Path) -> dict[str, Found]:
    """Return the adapters under a root by name, in the order of their names.

    Folders are adapters themselves, or runs or chains that hold one; hidden ones are passed over. What cannot
    be served is named by a notice.
    Raises UsageError for a root that is no folder.
    """
    if not root.is_dir():
        raise UsageError(
            f"{root} is no folder", "a folder of adapters, each in a folder of its own", "check the path"
        )
    entries = sorted(entry for entry in root.iterdir() if entry.is_dir() and entry.name[0] != ".")
    adapters = {}
    for entry in entries:
        try:
            if (found := look(root, entry.name)) is not None:
                adapters[found.name] = found
        except AdapterError as error:
            notice(f"{error.given}: it is not served")
    return adapters


def look(root: Path, name: str) -> Found | None:
    """Return what lies under a root by this name; None for a folder that holds no adapter.

    Raises AdapterError for a name that is none, a link that leads out of the root, or a damaged file.
    """
    if not NAME.fullmatch(name):
        raise AdapterError(
            f"{name[:80]!r} is no name of an adapter",
            "letters, digits, '.', '_' and '-', at most 64, the first a letter or a digit",
            "rename its folder",
        )
    folder = root / name
    if not (folder / CONFIG).is_file():
        folder = folder / "adapter"  # of a run
    if not (folder / CONFIG).is_file():
        folder = _of_chain(root / name)
    if not (folder / CONFIG).is_file():
        return None
    for path in (folder, folder / CONFIG, folder / WEIGHTS):
        if not path.resolve().is_relative_to(root.resolve()):
            raise AdapterError(f"{path} is a link that leads out of {root}", "files inside it", "copy them")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind = str(config["peft_type"]).lower().removeprefix("graft_")
        digest = f"{known_digest(folder / WEIGHTS)}{known_digest(folder / CONFIG)}"
        created = int((folder / WEIGHTS).stat().st_mtime)
    except (OSError, ValueError, RecursionError, LookupError, TypeError) as error:
        raise AdapterError(
            f"{folder} cannot be read ({type(error).__name__})", "a whole adapter", "copy it again"
        ) from None
    return Found(name, folder, kind, digest, created)


def _of_chain(folder: Path) -> Path:
    """Return where the adapter of a chain lies, which stands for its last finished stage."""
    try:
        return Path(last_finished(str(folder))) / "adapter"
    except UsageError as error:
        raise AdapterError(error.given, error.expected, error.remedy) from None


def chosen(name: str, adapters: dict[str, Found]) -> Found:
    """Return the adapter of this name. Raises AdapterError with the nearest one."""
    return adapters[one_of("adapter", name, adapters, AdapterError)]
