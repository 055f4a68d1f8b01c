"""The only door to a run's folder: writes that last, folders that are whole or absent, errors of the disk."""

from graft.storage.commits import (
    MANIFEST,
    commit,
    latest,
    quarantine,
    rotate,
    steps,
    validate,
)
from graft.storage.digests import cache_folder, digest, known_digest
from graft.storage.disk import disk_full, free_bytes, retry_while_full
from graft.storage.sameness import PATH, changes, is_same_run, kinds
from graft.storage.seals import seal, unseal
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
from graft.storage.written import CERTIFICATE, as_they_are, is_comparing, require_unchanged

__all__ = [
    "CERTIFICATE",
    "MANIFEST",
    "PATH",
    "as_they_are",
    "cache_folder",
    "changes",
    "commit",
    "digest",
    "disk_full",
    "encode",
    "free_bytes",
    "is_comparing",
    "is_same_run",
    "kinds",
    "known_digest",
    "latest",
    "new_file",
    "new_folder",
    "output_folder",
    "quarantine",
    "read_json",
    "refuse_occupied",
    "remove",
    "replace",
    "require_unchanged",
    "retry_while_full",
    "rotate",
    "seal",
    "steps",
    "sweep",
    "sync",
    "unseal",
    "validate",
    "write",
    "write_json",
    "write_tensors",
]
