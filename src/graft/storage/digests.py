"""Digests of files, each computed once: they are remembered by what tells a changed file from the same one.

    sha256    says what a file is: in identities, and in `graft verify`
    xxh3      finds damage, in a fraction of the time: what loading compares (XXH3, 128 bits)
    memory    {device:inode:kind: [size, mtime_ns, ctime_ns, digest]}, one file in Graft's cache folder

Whoever writes into a file changes its ctime, which no program can set. What time does not tell is damage
that the system does not know of, on the disk itself: `graft verify` reads every byte again. The memory may
be deleted at any time. Several processes may write it: the last one wins, and what is lost is computed again.
"""

import contextlib
import hashlib
import json
import mmap
import os
import threading
import time
from pathlib import Path
from typing import Any

import xxhash

from graft.storage.seals import seal, unseal
from graft.storage.system import WINDOWS
from graft.storage.writes import replace

MOST = 4096  # files remembered; those remembered last stay
SMALL = 1 << 20  # bytes of a file that is read again each time: looking it up takes as long
# A file that was changed a moment ago may change again without another time stamp: it is not remembered yet.
SETTLED_NS = 2_000_000_000

KINDS = ("sha256", "xxh3")

Stamp = tuple[int, int, int]  # size, mtime_ns, ctime_ns
Entry = tuple[Stamp, str]
_lock = threading.Lock()


def cache_folder(name: str) -> Path:
    """Return a folder of Graft's cache: in GRAFT_CACHE if that is set, else in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("GRAFT_CACHE") or Path(home) / "graft") / name


def digest(path: Path, kind: str = "sha256") -> str:
    """Return the digest of a file, in hexadecimal.  kind: sha256 or xxh3."""
    with open(path, "rb") as file:
        return _hashed(file, kind)


def known_digest(path: Path, kind: str = "sha256") -> str:
    """Return the digest of a file; it is read only if it has changed since it was read last."""
    with open(path, "rb") as file:
        before = os.fstat(file.fileno())
        if before.st_size <= SMALL or WINDOWS:  # whose ctime is when a file was made
            return _hashed(file, kind)
        key, stamp = f"{before.st_dev}:{before.st_ino}:{kind}", _stamp(before)
        with _lock:
            entry = _memory().get(key)
        if entry is not None and entry[0] == stamp:
            return entry[1]
        found = _hashed(file, kind)
        settled = time.time_ns() - max(before.st_mtime_ns, before.st_ctime_ns) > SETTLED_NS
        if settled and _stamp(os.fstat(file.fileno())) == stamp:
            _remember(key, (stamp, found))
    return found


def _hashed(file: Any, kind: str) -> str:
    """Return the digest of an open file, of which nothing was read."""
    if kind == "sha256" or not os.fstat(file.fileno()).st_size:
        return hashlib.file_digest(file, "sha256" if kind == "sha256" else xxhash.xxh3_128).hexdigest()
    # In one call over the mapped file, as loading maps it: while another thread loads, each piece would wait
    # for the interpreter's lock.
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        return xxhash.xxh3_128_hexdigest(whole)


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _path() -> Path:
    return cache_folder("digests") / "files.json"


def _memory() -> dict[str, Entry]:
    """Return what is remembered; nothing where that is damaged or cannot be read."""
    try:
        kept = json.loads(unseal(_path().read_bytes()) or b"{}")
    except (OSError, RuntimeError, ValueError):  # RuntimeError: a user without a home folder
        return {}
    return {key: ((size, mtime, ctime), found) for key, (size, mtime, ctime, found) in kept.items()}


def _remember(key: str, entry: Entry) -> None:
    """Add an entry. Where the disk does not allow it, the file is read again next time."""
    with _lock, contextlib.suppress(OSError, RuntimeError):
        kept = _memory()
        kept.pop(key, None)
        latest = {**kept, key: entry}
        if len(latest) > MOST:
            latest = dict(list(latest.items())[-MOST:])
        _path().parent.mkdir(parents=True, exist_ok=True)
        rows = {name: [*stamp, found] for name, (stamp, found) in latest.items()}
        replace(_path(), seal(json.dumps(rows).encode()))
