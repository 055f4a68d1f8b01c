"""The only door to a run's folder: writes that last, folders that are whole or absent, errors of the disk;
who may write, and when a signal may stop it."""

from graft.storage.commits import (
    MANIFEST,
    commit,
    digest,
    latest,
    quarantine,
    rotate,
    steps,
    validate,
)
from graft.storage.disk import disk_full, free_bytes, retry_while_full
from graft.storage.lock import Lock, locked, output_locked
from graft.storage.writes import (
    encode,
    new_file,
    new_folder,
    output_folder,
    read_json,
    refuse_occupied,
    remove,
    replace,
    sweep,
    sync,
    write,
    write_json,
    write_tensors,
)

__all__ = [
    "MANIFEST",
    "Lock",
    "commit",
    "digest",
    "disk_full",
    "encode",
    "free_bytes",
    "latest",
    "locked",
    "new_file",
    "new_folder",
    "output_folder",
    "output_locked",
    "quarantine",
    "read_json",
    "refuse_occupied",
    "remove",
    "replace",
    "retry_while_full",
    "rotate",
    "steps",
    "sweep",
    "sync",
    "validate",
    "write",
    "write_json",
    "write_tensors",
]
