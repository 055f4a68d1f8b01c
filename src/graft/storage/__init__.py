"""The only door to a run's folder: writes that last, folders that are whole or absent, errors of the disk;
who may write, and when a signal may stop it."""

from graft.storage.commits import (
    MANIFEST,
    commit,
    discard,
    latest,
    quarantine,
    rotate,
    steps,
    validate,
)
from graft.storage.digests import cache_folder, digest, known_digest
from graft.storage.disk import free_bytes, named_errors, retry_while_full, system_error
from graft.storage.lines import read_lines
from graft.storage.lock import Lock, locked, output_locked
from graft.storage.outputs import output_folder, refuse_occupied, require_file, require_run_folder
from graft.storage.sameness import PATH, changes, is_same_run, kinds
from graft.storage.seals import seal, unseal
from graft.storage.writes import (
    clear,
    encode,
    new_file,
    new_folder,
    read_json,
    read_record,
    remove,
    replace,
    sweep,
    sync,
    told_as_of,
    write,
    write_json,
    write_record,
    write_tensors,
)
from graft.storage.written import CERTIFICATE, QUICK, as_they_are, is_comparing, require_unchanged

__all__ = [
    "CERTIFICATE",
    "MANIFEST",
    "PATH",
    "QUICK",
    "Lock",
    "as_they_are",
    "cache_folder",
    "changes",
    "clear",
    "commit",
    "digest",
    "discard",
    "encode",
    "free_bytes",
    "is_comparing",
    "is_same_run",
    "kinds",
    "known_digest",
    "latest",
    "locked",
    "named_errors",
    "new_file",
    "new_folder",
    "output_folder",
    "output_locked",
    "quarantine",
    "read_json",
    "read_lines",
    "read_record",
    "refuse_occupied",
    "remove",
    "replace",
    "require_file",
    "require_run_folder",
    "require_unchanged",
    "retry_while_full",
    "rotate",
    "seal",
    "steps",
    "sweep",
    "sync",
    "system_error",
    "told_as_of",
    "unseal",
    "validate",
    "write",
    "write_json",
    "write_record",
    "write_tensors",
]
