"""Check the files of any folder that Graft reads against the digests that lie in it; nothing is loaded.

    manifest.json, certificate.json     the SHA-256 of every file beside them (`storage.written`)
    adapter_model.safetensors           the digests of its tensors and settings in its own metadata

In a run's folder these are the adapter, the checkpoints and whatever else was committed. Files of other tools
have no digests, and neither have logs and reports: they are said to be not checked, and count neither way.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from graft.errors import CheckpointError, GraftError, UsageError, listed
from graft.formats import peft
from graft.storage.written import KEYS, changes, records

SAME = "same"
DIFFERS = "differs"
UNKNOWN = "not checked"
RUN = "recipe.yaml"
MODEL = "config.json"
LEFT_BEHIND = (".tmp-", "damaged-")  # starts of the names of what no command reads


@dataclass(frozen=True)
class Check:
    """One finding.

    what: a part of the certificate, or of the folder.  state: same, differs, or not checked.  finding: in a
    few words.
    """

    what: str
    state: str
    finding: str


def verify_files(folder: Path) -> list[Check]:
    """Return a check of everything in an adapter's, a run's or a model's folder that carries digests.

    Raises UsageError for another folder.
    """
    if (folder / peft.CONFIG).is_file():
        return [*_recorded(folder, "files"), _adapter(folder)]
    chain = any(folder.glob(f"*/{RUN}"))
    if (folder / RUN).is_file() or chain:
        return [*_inside(folder), *_without_digests(folder)]
    if (folder / MODEL).is_file():
        return list(_recorded(folder, "files")) or [_foreign("files", "a model of another program")]
    raise UsageError(
        f"{folder} holds no adapter, no run and no model",
        "a folder that Graft wrote, or one that it can load",
        "check the path",
    )


def compared(what: str, wanted: dict[str, str], folder: Path, apart: set[str]) -> Check:
    """Return the check of a folder's files against these digests.  apart: files that are not in the list."""
    wrong = [f"{name} {state.partition(' after ')[0]}" for name, state in changes(folder, wanted)]
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    extra = [f"{name} is new" for name in sorted(present - wanted.keys() - apart)]
    if wrong:
        return Check(what, DIFFERS, ", ".join(wrong + extra))
    return Check(what, SAME, ", ".join([f"{len(wanted)} as written", *extra]))


def _recorded(folder: Path, what: str) -> Iterator[Check]:
    """Yield a check of the files of one folder for the manifest and for the certificate in it."""
    try:
        for wanted in records(folder, CheckpointError).values():
            yield compared(what, wanted, folder, set(KEYS))
    except CheckpointError as error:
        yield Check(what, DIFFERS, error.given)


def _adapter(folder: Path) -> Check:
    """Return the check of an adapter's two files against the digests inside them."""
    try:
        if not (folder / peft.WEIGHTS).is_file() or not peft.carries_digests(folder):
            return _foreign("adapter", "an adapter of another program, or of an older Graft")
        peft.read(folder)
    except GraftError as error:
        return Check("adapter", DIFFERS, error.given)
    except (SafetensorError, ValueError) as error:
        return Check("adapter", DIFFERS, f"{folder} is damaged ({error})")
    return Check("adapter", SAME, "tensors and settings as saved")


def _inside(folder: Path) -> Iterator[Check]:
    """Yield the checks of all folders inside a run's that have a manifest or a certificate."""
    places = {path.parent for name in KEYS for path in folder.rglob(name)}
    for place in sorted(places):
        name = place.relative_to(folder).as_posix()
        if not any(part.startswith(LEFT_BEHIND) for part in place.relative_to(folder).parts):
            yield from _recorded(place, name)


def _without_digests(folder: Path) -> Iterator[Check]:
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name not in KEYS)
    if names:
        yield Check("other files", UNKNOWN, f"no digests of {listed(names, 12)}")


def _foreign(what: str, whose: str) -> Check:
    return Check(what, UNKNOWN, f"no digests: {whose}")
