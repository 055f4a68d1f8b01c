import errno
import hashlib
import os
import random
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from graft import storage
from graft.errors import CheckpointError, SpaceError, UsageError
from graft.storage import commits, disk, locked, writes


class Dead(BaseException):
    """A process that is no more: nothing catches it."""


class Faulty:
    """The `os` module, where the k-th call that changes the disk dies or fails; counts them."""

    CHANGES = ("open", "mkdir", "write", "fsync", "rename", "unlink", "rmdir")

    def __init__(self, k=None, error=Dead):
        self.calls, self.k, self.error = 0, k, error

    def __getattr__(self, name):
        real = getattr(os, name)
        return self._counted(real) if name in self.CHANGES else real

    def _counted(self, real):
        def call(*arguments, **keywords):
            self.calls += 1
            if self.k is not None and self.calls >= self.k:
                raise self.error()
            return real(*arguments, **keywords)

        return call


def contents(step):
    return {"W": torch.full((40,), float(step)), "b": torch.arange(step, step + 5)}


def save(folder, step, keep=2, spare=()):
    """A commit as a run makes it: two files, verified, then rotation."""

    def fill(temporary):
        storage.write_tensors(temporary / "adapter.safetensors", contents(step))
        storage.write(temporary / "state.json", storage.encode({"step": step}))

    storage.commit(folder / f"step-{step:06d}", fill, {"step": step})
    storage.validate(folder / f"step-{step:06d}")
    storage.rotate(folder, keep, spare)


def operations(folder):
    counting = Faulty()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writes, "os", counting)
        save(folder, 3)
    return counting.calls


def test_a_crash_at_every_operation_of_a_save_leaves_the_new_or_the_previous_checkpoint(tmp_path):
    total = operations_after_two(tmp_path / "count")
    assert total > 15
    seen = set()
    for k in range(1, total + 1):
        folder = tmp_path / str(k)
        save(folder, 1), save(folder, 2)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Dead):
            patch.setattr(writes, "os", Faulty(k))
            save(folder, 3)
        storage.sweep(folder)
        newest, damaged = storage.latest(folder)
        seen.add(newest.name)
        assert not damaged and newest.name in ("step-000002", "step-000003")
        assert storage.validate(newest)["step"] == int(newest.name[-1])
        assert not list(folder.glob(".tmp-*"))
    assert seen == {"step-000002", "step-000003"}


def operations_after_two(folder):
    save(folder, 1), save(folder, 2)
    return operations(folder)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_an_error_at_every_operation_keeps_the_previous_checkpoint_and_removes_the_temporary_folder(
    number, tmp_path
):
    folder = tmp_path / "run"
    save(folder, 1)
    for k in range(1, 13):  # up to the rename

        class Once(Faulty):
            def _counted(self, real):
                def call(*arguments, **keywords):
                    self.calls += 1
                    if self.calls == self.k:
                        raise OSError(number, os.strerror(number))
                    return real(*arguments, **keywords)

                return call

        with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError):
            patch.setattr(writes, "os", Once(k))
            save(folder, 2)
        assert [entry.name for entry in folder.iterdir()] == ["step-000001"]
        storage.validate(folder / "step-000001")


def test_single_flipped_bits_truncations_swaps_and_missing_files_are_all_detected(tmp_path):
    save(tmp_path, 1)
    checkpoint = tmp_path / "step-000001"
    chance = random.Random(0)
    files = sorted(checkpoint.iterdir())
    originals = {file: file.read_bytes() for file in files}
    for file, data in originals.items():
        broken = [bytearray(data) for _ in range(60)]
        for copy in broken:
            copy[chance.randrange(len(copy))] ^= 1 << chance.randrange(8)
        for damage in [*broken, *(data[: len(data) * i // 64] for i in range(64)), data + b"\n"]:
            file.write_bytes(damage)
            with pytest.raises(CheckpointError):
                storage.validate(checkpoint)
        file.unlink()
        with pytest.raises(CheckpointError):
            storage.validate(checkpoint)
        file.write_bytes(data)
    first, second = files[0], files[-1]
    first.write_bytes(originals[second]), second.write_bytes(originals[first])
    with pytest.raises(CheckpointError):
        storage.validate(checkpoint)
    for file, data in originals.items():
        file.write_bytes(data)
    assert storage.validate(checkpoint) == {"step": 1}


def test_the_error_of_a_damaged_file_names_it_and_both_digests(tmp_path):
    save(tmp_path, 1)
    file = tmp_path / "step-000001" / "adapter.safetensors"
    expected = storage.digest(file)
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError) as error:
        storage.validate(file.parent)
    assert all(text in str(error.value) for text in (str(file), expected, storage.digest(file)))


def signed(body):
    """The bytes of a manifest with its own digest, whatever it says."""
    return storage.encode(body | {"sha256": hashlib.sha256(storage.encode(body)).hexdigest()})


FILES = {"adapter.safetensors": {"bytes": 1, "sha256": "0" * 64}}
SHAPE = {"format": 1, "name": "step-000002", "files": FILES, "facts": {}}
FOREIGN = {
    "list": b"[]",
    "null": b"null",
    "text": b'"manifest"',
    "number": b"7",
    "empty": b"{}",
    "deep": b"[" * 100_000,
    "deep object": b'{"a":' * 100_000,
    "half a character": b'{"sha256": "\\ud800"}',
    "no UTF-8": b"\xff\xfe",
    "digest is a number": storage.encode(SHAPE | {"sha256": 5}),
    "files null": signed(SHAPE | {"files": None}),
    "files a list": signed(SHAPE | {"files": []}),
    "a file without a digest": signed(SHAPE | {"files": {"adapter.safetensors": {"bytes": 1}}}),
    "a file that is null": signed(SHAPE | {"files": {"adapter.safetensors": None}}),
    "a digest that is a number": signed(SHAPE | {"files": {"x": {"bytes": 1, "sha256": 5}}}),
    "facts null": signed(SHAPE | {"facts": None}),
    "facts a list": signed(SHAPE | {"facts": []}),
    "name null": signed(SHAPE | {"name": None}),
    "another format": signed(SHAPE | {"format": 2}),
    "no format": signed({key: value for key, value in SHAPE.items() if key != "format"}),
    "a file outside": signed(SHAPE | {"files": {"../x": {"bytes": 1, "sha256": "0" * 64}}}),
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_a_manifest_of_any_other_shape_is_damaged_and_an_older_checkpoint_is_found(tmp_path, content):
    save(tmp_path, 1), save(tmp_path, 2)
    (tmp_path / "step-000002" / "manifest.json").write_bytes(content)
    newest, ((damaged, error),) = storage.latest(tmp_path)
    assert (newest.name, damaged.name) == ("step-000001", "step-000002")
    assert type(error) is CheckpointError


def test_a_checkpoint_of_which_the_disk_lost_a_part_is_damaged(tmp_path, monkeypatch):
    save(tmp_path, 1), save(tmp_path, 2)
    real = commits.digest

    def lost(path):
        if path.parent.name == "step-000002":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return real(path)

    monkeypatch.setattr(commits, "digest", lost)
    newest, ((_, error),) = storage.latest(tmp_path)
    assert newest.name == "step-000001" and "Input/output error" in error.given


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_files_of_every_writer_have_the_mode_of_a_new_file(tmp_path, umask):
    before = os.umask(umask)
    try:
        save(tmp_path, 1)
        with storage.new_file(tmp_path / "alone.safetensors") as partial:
            save_file(contents(1), partial)
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 4 and {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~umask}


def test_the_newest_valid_checkpoint_is_found_behind_damaged_ones(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step, keep=9)
    (tmp_path / "step-000003" / "state.json").write_text("{}")
    (tmp_path / "step-000002" / "manifest.json").unlink()
    newest, damaged = storage.latest(tmp_path)
    assert newest.name == "step-000001"
    assert [folder.name for folder, _ in damaged] == ["step-000003", "step-000002"]


@pytest.mark.parametrize(("keep", "left"), [(1, {2, 6}), (2, {2, 5, 6}), (0, {2, 6})])
def test_rotation_keeps_the_newest_ones_and_the_best(keep, left, tmp_path):
    for step in range(1, 7):
        save(tmp_path, step, keep=keep, spare=[2])
    assert {step for step, _ in storage.steps(tmp_path)} == left


def test_a_folder_that_exists_is_replaced_whole(tmp_path):
    target = tmp_path / "adapter"
    storage.commit(target, lambda folder: storage.write(folder / "old", b"1"))
    storage.commit(target, lambda folder: storage.write(folder / "new", b"2"))
    assert sorted(file.name for file in target.iterdir()) == ["manifest.json", "new"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("failure", [ValueError("no"), KeyboardInterrupt()])
def test_a_new_folder_that_fails_leaves_the_older_one_and_nothing_else(failure, tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("1")
    with pytest.raises(type(failure)), storage.output_folder(target, force=True) as folder:
        (folder / "new").write_text("2")
        raise failure
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    assert [entry.name for entry in target.iterdir()] == ["old"]


@pytest.mark.parametrize("operation", ["unlink", "rmdir"])
def test_a_signal_while_the_older_folder_goes_leaves_nothing_of_it(operation, tmp_path, monkeypatch):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("1")
    real, interrupted = getattr(os, operation), []

    def once(path):
        if not interrupted:
            interrupted.append(path)
            raise KeyboardInterrupt
        real(path)

    with pytest.raises(KeyboardInterrupt), storage.new_folder(target) as folder:
        (folder / "new").write_text("2")
        monkeypatch.setattr(os, operation, once)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    assert [entry.name for entry in target.iterdir()] == ["new"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_told_alike_whoever_wrote_and_leaves_no_half_folder(error, tmp_path):
    with (
        pytest.raises(SpaceError, match="No space left on device"),
        storage.output_folder(tmp_path / "out", force=False),
    ):
        raise error
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_replaced_only_by_force(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    with storage.output_folder(target, force=False) as folder:  # an empty folder is a new one
        (folder / "a").write_text("1")
    with pytest.raises(UsageError, match="--force"), storage.output_folder(target, force=False):
        pass
    with storage.output_folder(target, force=True) as folder:
        (folder / "b").write_text("2")
    assert [entry.name for entry in target.iterdir()] == ["b"]


def test_tied_tensors_are_written_under_both_names(tmp_path):
    tensor = torch.arange(6.0)
    storage.write_tensors(tmp_path / "x.safetensors", {"embed": tensor, "head": tensor})
    from safetensors.torch import load_file

    assert torch.equal(load_file(tmp_path / "x.safetensors")["head"], tensor)


def test_a_full_disk_is_tried_again_and_then_told_with_path_and_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "PAUSES_S", (0.0, 0.0))
    tries, warnings = [], []

    def action():
        tries.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(SpaceError) as error:
        storage.retry_while_full(tmp_path, 123_456, action, warnings.append)
    free = shutil.disk_usage(tmp_path).free // 2**30
    assert len(tries) == 3 and len(warnings) == 2 and error.value.exit_code == 74
    assert str(tmp_path) in str(error.value) and "123,456 bytes" in str(error.value) and free >= 0


def test_another_error_of_the_disk_is_not_mistaken_for_a_full_one(tmp_path):
    def action():
        raise OSError(errno.EACCES, "no")

    with pytest.raises(PermissionError):
        storage.retry_while_full(tmp_path, 1, action, print)


def test_a_second_run_in_a_folder_is_refused_and_told_who_is_there(tmp_path):
    program = (
        "import sys; from pathlib import Path; from graft.storage import locked\n"
        "with locked(Path(sys.argv[1])): pass"
    )
    child = [sys.executable, "-c", program, str(tmp_path)]
    with locked(tmp_path):
        done = subprocess.run(child, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"process {os.getpid()} on" in done.stderr and "another output" in done.stderr
    with locked(tmp_path):  # and the lock is free again
        pass
