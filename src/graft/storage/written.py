"""What Graft wrote into a folder that other programs may read, copy and edit: is it still the same?

    manifest.json        beside what a run wrote: its adapter, its tokenizer (`commits`)
    certificate.json     beside what was exported or quantised (`shipping.certificate`)

Both have the SHA-256 of every file, and its XXH3, which is quick enough for loading. Who loads such a folder
compares the files that are read in loading. A folder may be copied and renamed, and files may be added. A
folder with neither file is somebody else's, or of an older Graft: nothing can be said about it.
"""

import contextlib
import contextvars
import json
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from graft.errors import CheckpointError, GraftError
from graft.storage.commits import MANIFEST, sealed_manifest
from graft.storage.digests import digest, known_digest
from graft.storage.seals import unseal
from graft.storage.writes import read_json, remove

CERTIFICATE = "certificate.json"
QUICK = "xxh3"  # the digests that loading compares; older records have the others alone
NAMES = {"sha256": "SHA-256", QUICK: "XXH3"}
# What each has; one that lacks most of it is a file of somebody else with that name.
KEYS = {
    MANIFEST: {"facts", "files", "format", "name", "sha256"},
    CERTIFICATE: {"adapters", "base", "files", "format", "versions"},
}
# What certificates had before they had a seal. Who takes the seal off a newer one is found out.
MORE = {"added_to", "calibrated", "into", "logits", "perplexity", "prompts", "quant", "rounded", "weights"}
READ_IN_LOADING = (".gguf", ".jinja", ".json", ".model", ".safetensors", ".txt")

_comparing: contextvars.ContextVar[bool] = contextvars.ContextVar("comparing", default=True)


@contextlib.contextmanager
def as_they_are() -> Iterator[None]:
    """Let files be loaded inside the block although they were changed: to measure what they hold now."""
    token = _comparing.set(False)
    try:
        yield
    finally:
        _comparing.reset(token)


def is_comparing() -> bool:
    """Return whether files are compared before they are used."""
    return _comparing.get()


def require_unchanged(
    folder: Path, error: type[GraftError], wanted: Callable[[str], bool] | None = None
) -> None:
    """Raise `error` if a file that is read in loading is not as Graft wrote it into this folder.

    wanted: chooses files by name; all that are read in loading by default.
    """
    if not is_comparing():
        return
    for record, files in records(folder, error, QUICK).items():
        loaded = {name: digests for name, digests in files.items() if name.endswith(READ_IN_LOADING)}
        chosen = {name: digests for name, digests in loaded.items() if wanted is None or wanted(name)}
        for name, state in changes(folder, chosen, known_digest):
            raise error(
                f"{folder / name} {state}",
                f"the file that {record} lists",
                "copy the folder again from where it came, or make it again; if you changed it on purpose, "
                f"delete {folder / record}",
            )


def records(folder: Path, error: type[GraftError], kind: str = "sha256") -> dict[str, dict[str, str]]:
    """Return {manifest.json or certificate.json: {file: "KIND:DIGEST"}} of those that lie in a folder.

    kind: which digest is wanted; SHA-256 takes its place where it is missing. Raises `error` for a record
    that was changed.
    """
    found = {name: _listed(folder / name, error) for name in KEYS}
    return {
        name: {file: next(f"{k}:{of[k]}" for k in (kind, "sha256") if k in of) for file, of in files.items()}
        for name, files in found.items()
        if files is not None
    }


def changes(
    folder: Path, files: dict[str, str], digest_of: Callable[[Path, str], str] = digest
) -> Iterator[tuple[str, str]]:
    """Yield (file, what happened to it) of files that have not these digests.

    files: {file: "KIND:DIGEST"}, or the SHA-256 alone.
    """
    for name, wanted in files.items():
        kind, _, then = f"sha256:{wanted}".rpartition(":")
        kind, path = kind.rpartition(":")[2], folder / name
        if not path.is_file():
            yield name, "is missing"
        elif (now := digest_of(path, kind)) != then:
            yield name, f"was changed after Graft wrote it: its {NAMES[kind]} is {now[:12]}, not {then[:12]}"


def forget_written(folder: Path) -> None:
    """Remove what Graft wrote about the files of a folder, because others take their place."""
    for name in KEYS:
        with contextlib.suppress(OSError, ValueError, RecursionError):
            if _is_ours(name, read_json(folder / name)):
                remove(folder / name)


def _is_ours(name: str, facts: Any) -> bool:
    """Return whether this is a record of ours. One changed byte damages one key: the others tell."""
    return isinstance(facts, dict) and len(KEYS[name] & facts.keys()) >= len(KEYS[name]) - 1


def _listed(path: Path, error: type[GraftError]) -> dict[str, dict[str, str]] | None:
    """Return {file: {kind: digest}} of a manifest or certificate; None if missing, or somebody else's."""
    if not path.is_file():
        return None
    try:
        raw = path.read_bytes()
        facts = json.loads(raw)
    except (ValueError, RecursionError):
        _refuse(path, error)
    if not _is_ours(path.name, facts):
        if _lies_elsewhere(path):
            _refuse(path, error)
        return None
    if path.name == MANIFEST:
        try:
            entries = sealed_manifest(path)["files"]
        except CheckpointError:
            _refuse(path, error)
        return {name: _kinds(entry) for name, entry in entries.items() if inside(name)}
    certificate = unsealed(raw)
    if certificate is None:
        _refuse(path, error)
    quick = certificate.get(QUICK, {})
    return {
        name: _kinds({"sha256": sha256, QUICK: quick.get(name)})
        for name, sha256 in certificate["files"].items()
    }


def _kinds(entry: dict[str, Any]) -> dict[str, str]:
    """Return the digests in what a record says of a file."""
    return {kind: entry[kind] for kind in (QUICK, "sha256") if isinstance(entry.get(kind), str)}


def _lies_elsewhere(path: Path) -> bool:
    """Return whether the record that belongs here has the name of another file of its folder."""
    for file in path.parent.glob("*.json"):
        with contextlib.suppress(OSError, ValueError, RecursionError):
            if file.name not in KEYS and _is_ours(path.name, read_json(file)):
                return True
    return False


def unsealed(raw: bytes) -> dict[str, Any] | None:
    """Return the facts of a certificate; None for one that was changed. Older ones have no seal."""
    body = unseal(raw)
    try:
        facts = json.loads(raw if body is None else body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(facts, dict) or (body is None and facts.keys() - KEYS[CERTIFICATE] - MORE):
        return None
    files = facts.get("files")
    sound = isinstance(files, dict) and all(isinstance(v, str) and inside(k) for k, v in files.items())
    return facts if sound and isinstance(facts.get(QUICK, {}), dict) else None


def inside(name: str) -> bool:
    """Return whether a name that a file gives is that of a file inside its folder."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\0" not in name


def _refuse(path: Path, error: type[GraftError]) -> NoReturn:
    raise error(
        f"{path} is damaged, or was changed",
        "the digests of the files beside it, as Graft wrote them",
        f"copy the folder again from where it came; if you know that its files are right, delete {path.name}",
    ) from None
