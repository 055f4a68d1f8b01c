"""Every error that carries a number of the system is told alike: where, what, what to do; exit 1 or 74."""

import errno
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import save_file

from graft import storage
from graft.errors import GraftError, MachineError, SpaceError, UsageError
from graft.storage import disk, writes
from graft.storage.disk import number_of, system_error

FULL = ("ENOSPC", "EDQUOT", "EFBIG")
NAMES = (
    *FULL, "EIO", "EACCES", "EPERM", "EROFS", "ENOTDIR", "EISDIR", "EEXIST", "ENOENT", "ENAMETOOLONG",
    "ELOOP", "EMFILE", "ENFILE", "ESTALE", "EBUSY", "ENXIO", "ENODEV", "ENOTEMPTY", "EINVAL", "EREMOTEIO",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_d24_an_error_of_the_system_names_path_reason_deed_and_remedy(name, tmp_path):
    number = getattr(errno, name)
    told = system_error(OSError(number, os.strerror(number), str(tmp_path / "x")), "while training")
    assert type(told) is (SpaceError if name in FULL else MachineError) and told.number == number
    assert told.exit_code == (74 if name in FULL else 1)
    assert str(tmp_path / "x") in told.given and os.strerror(number) in told.given
    assert name in FULL or (f"({name})" in told.given and "while training" in told.given)
    assert (
        told.expected and told.remedy and not any(part.endswith(".") for part in (told.given, told.expected))
    )


FOREIGN = [
    (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "ENOSPC"),
    (SafetensorError("I/O error: Input/output error (os error 5)"), "EIO"),
    (Exception("No space left on device (os error 28)"), "ENOSPC"),  # tokenizers
    (Exception("Disk quota exceeded"), "EDQUOT"),
    (Exception("Permission denied (os error 13)"), "EACCES"),
    (OSError("131072 requested and 7648 written"), "ENOSPC"),  # numpy's tofile
    (OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"), "ENOSPC"),
    (ImportError("libtorch_cpu.so: cannot open shared object file: Too many open files"), "EMFILE"),
    (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "ENOMEM"),
    (RuntimeError("unable to mmap 4096 bytes from file </x>: Cannot allocate memory (12)"), "ENOMEM"),
    (
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you "
            "tried to allocate 9 bytes. Error code 12 (Cannot allocate memory)"
        ),
        "ENOMEM",
    ),
    (RuntimeError("std::bad_alloc"), "ENOMEM"),
    (RuntimeError("can't start new thread"), "EAGAIN"),
    (MemoryError(), "ENOMEM"),
]


@pytest.mark.parametrize(("error", "name"), FOREIGN, ids=lambda value: str(value)[:30])
def test_d23_errors_of_other_libraries_are_told_like_those_of_python(error, name, tmp_path):
    assert number_of(error) == getattr(errno, name)
    told = system_error(error, "while writing it", tmp_path / "out")
    assert told.exit_code == (74 if name in FULL else 1)
    memory = name in ("ENOMEM", "EAGAIN")
    assert memory or str(tmp_path / "out") in told.given


@pytest.mark.parametrize(
    "error",
    [
        ValueError("the disk quota of this function: No space left on device"),
        KeyError("x"),
        RuntimeError("shape mismatch (28)"),
        OSError("models/x is not the path to a folder"),
        OSError(errno.EBADF, "Bad file descriptor"),
        Exception("invalid type"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_has_no_number_of_the_system_is_left_alone(error):
    assert system_error(error) is None
    with pytest.raises(type(error)), storage.named_errors("while training"):
        raise error


def test_the_reason_behind_another_librarys_error_is_told():
    try:
        try:
            raise PermissionError(errno.EACCES, "Permission denied", "/models/x/config.json")
        except OSError:
            raise OSError("cannot load the configuration of x")  # noqa: B904  as transformers does
    except OSError as error:
        told = system_error(error)
    assert "/models/x/config.json: Permission denied (EACCES)" in told.given


def test_our_own_errors_pass_through():
    with pytest.raises(UsageError), storage.named_errors("while training"):
        raise UsageError("a", "b", "c")


def test_a_real_writer_in_rust_and_a_real_tofile_are_told_with_path(tmp_path):
    with limited(4096), pytest.raises(OSError) as rust, storage.new_folder(tmp_path / "out") as folder:
        save_file({"x": np.zeros(9000)}, folder / "x.safetensors")
    with limited(4096), pytest.raises(OSError) as python, storage.new_folder(tmp_path / "out") as folder:
        np.zeros(9000).tofile(folder / "x")
    assert rust.value.errno == errno.EFBIG and rust.value.filename == str(tmp_path / "out")
    assert python.value.errno in (errno.EFBIG, errno.ENOSPC)
    assert not list(tmp_path.iterdir())


def test_a_lock_that_cannot_be_written_is_told_with_its_path(tmp_path):
    with limited(0), pytest.raises(OSError) as error, storage.locked(tmp_path):
        pass
    assert error.value.errno == errno.EFBIG and error.value.filename == str(tmp_path / ".lock")


class limited:
    """A real limit on the size of files, in this process."""

    def __init__(self, most):
        self.most = most

    def __enter__(self):
        import resource

        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.most, self.before[1]))

    def __exit__(self, *error):
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


def test_temporary_names_are_told_by_the_names_that_they_get(tmp_path):
    temporary = writes.beside(tmp_path / "my-out")
    assert disk.final_path(temporary / "x.gguf") == tmp_path / "my-out" / "x.gguf"
    long = writes.beside(tmp_path / ("ä" * 127))
    assert len(os.fsencode(long.name)) <= 255 - len("-old")


class Refusing:
    """The `os` module, which refuses one operation with one number."""

    def __init__(self, operation, number, at=1):
        self.operation, self.number, self.left = operation, number, at

    def __getattr__(self, name):
        return self._refuse if name == self.operation else getattr(os, name)

    def _refuse(self, *arguments, **keywords):
        self.left -= 1
        if self.left <= 0:
            raise OSError(self.number, os.strerror(self.number))
        return getattr(os, self.operation)(*arguments, **keywords)


@pytest.mark.parametrize("operation", ["open", "write", "fsync", "mkdir", "rename"])
@pytest.mark.parametrize("name", ["EIO", "EROFS", "EDQUOT", "ESTALE"])
def test_d24_every_refused_operation_of_an_output_is_named_and_leaves_nothing(
    operation, name, tmp_path, monkeypatch
):
    def make():
        with storage.output_folder(tmp_path / "out", force=False) as folder:
            storage.write(folder / "a", b"1")

    for at in (1, 2, 3):
        monkeypatch.setattr(writes, "os", Refusing(operation, getattr(errno, name), at))
        try:
            make()
        except MachineError as error:
            assert str(tmp_path / "out") in error.given and error.number == getattr(errno, name)
            monkeypatch.setattr(writes, "os", os)
            assert not list(tmp_path.iterdir())
        monkeypatch.setattr(writes, "os", os)
        storage.remove(tmp_path / "out")


def test_e30_a_checkpoint_that_cannot_be_removed_is_told_and_the_run_goes_on(tmp_path, monkeypatch):
    for step in (1, 2, 3):
        storage.commit(tmp_path / f"step-{step:06d}", lambda folder: storage.write(folder / "a", b"1"))
    for operation in ("rename", "unlink", "rmdir"):
        told = []
        monkeypatch.setattr(writes, "os", Refusing(operation, errno.EBUSY))
        storage.rotate(tmp_path, 2, warn=told.append)
        monkeypatch.setattr(writes, "os", os)
        assert len(told) == 1 and "busy" in told[0]
        if operation == "rename":
            assert len(storage.steps(tmp_path)) == 3
        else:  # half of it is rubbish now, which is no checkpoint, and which the next start sweeps
            assert [step for step, _ in storage.steps(tmp_path)] == [3, 2]
            storage.sweep(tmp_path)
            assert not list(tmp_path.glob(".tmp-*"))
            storage.commit(tmp_path / "step-000001", lambda folder: storage.write(folder / "a", b"1"))


def test_a_full_disk_of_the_users_code_is_tried_again_like_ours(tmp_path, monkeypatch):
    """An adapter's own writer raises SpaceError already; the checkpoint is tried again all the same."""
    monkeypatch.setattr(disk, "PAUSES_S", (0.0,))
    tries = []

    def action():
        tries.append(1)
        with storage.named_errors("while saving", tmp_path):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(SpaceError, match="7 bytes are needed"):
        storage.retry_while_full(tmp_path, 7, action, lambda text: None)
    assert len(tries) == 2


WAITS = """
import sys, time
from pathlib import Path
from graft import storage
with storage.output_folder(Path(sys.argv[1]), force=True) as folder:
    (folder / "half").write_text("written")
    print("ready", flush=True)
    time.sleep(60)
"""


def waiting(out):
    child = subprocess.Popen([sys.executable, "-c", WAITS, str(out)], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    return child


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_e27_what_a_killed_export_left_is_swept_by_the_next_and_that_of_a_living_one_is_not(how, tmp_path):
    killed, other = waiting(tmp_path / "out"), waiting(tmp_path / "outer")
    for child in (killed, other):
        child.send_signal(how)
        child.wait(60)
    living = waiting(tmp_path / "out")  # it sweeps what the killed one left
    assert [int(path.name.split("-")[2]) for path in tmp_path.glob(".tmp-out-*")] == [living.pid]
    with (
        pytest.raises(UsageError, match="is being written by process"),
        storage.output_folder(tmp_path / "out", force=False),
    ):
        pass
    assert [int(path.name.split("-")[2]) for path in tmp_path.glob(".tmp-out-*")] == [living.pid]
    assert list(tmp_path.glob(".tmp-outer-*"))  # of another output
    living.kill(), living.wait(60)
    with storage.output_folder(tmp_path / "out", force=True) as folder:
        storage.write(folder / "a", b"2")
    assert not list(tmp_path.glob(".tmp-out-*"))


def test_e27_a_kill_between_the_two_renames_gives_the_older_export_back(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait(60)
    old = tmp_path / f".tmp-out-{dead.pid}-{'0' * 32}-old"
    old.mkdir(), (old / "a").write_text("older")
    with pytest.raises(UsageError, match="exists"):
        storage.refuse_occupied(tmp_path / "out", force=False)
    assert (tmp_path / "out" / "a").read_text() == "older" and not list(tmp_path.glob(".tmp-*"))


def test_the_tree_of_errors_has_one_branch_for_the_machine():
    assert issubclass(SpaceError, MachineError) and issubclass(MachineError, GraftError)
