"""The growing files of a run, cut, damaged or gone: never filled with NUL, told, and no end of the run."""

import errno
import json
import os

import pytest
import train_toys

from graft import storage
from graft.errors import CheckpointError, Notice
from graft.storage import read_lines, writes
from graft.training.log import Journal, evaluations


class Stopped(Exception):
    pass


def interrupted(run, after=8):
    """A run that ended after this step, with checkpoints of the steps 3 and 6."""
    count = [0]

    def objective(base, batch):
        count[0] += 1
        if count[0] == 2 * after + 2:  # two micro-batches a step, and one before the first
            raise Stopped
        return train_toys.objective(base, batch)

    with pytest.raises(Stopped):
        train_toys.trainer(run, task={"objective": objective}).run()


def resumed(run):
    """Finish a run; return the warnings."""
    heard = []
    train_toys.trainer(run, observer=train_toys.told(heard)).run()
    return [text for event, *rest in heard if event == "warn" for text in rest]


DAMAGES = {
    "gone": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut in a line": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 3 + 1]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "cut after a line": lambda path: path.write_bytes(path.read_bytes().partition(b"\n")[0] + b"\n"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.md"])
def test_b9_a_journal_shorter_than_its_checkpoint_says_is_told_and_never_padded(name, damage, tmp_path):
    interrupted(tmp_path)
    DAMAGES[damage](tmp_path / name)
    left = (tmp_path / name).read_bytes() if (tmp_path / name).exists() else b""
    warnings = resumed(tmp_path)
    after = (tmp_path / name).read_bytes()
    assert b"\0" not in after
    assert [text for text in warnings if name in text and "has lost" in text]
    assert after.startswith(left[: left.rfind(b"\n") + 1])
    if name == "metrics.jsonl":
        steps = [json.loads(line)["step"] for line in after.splitlines()]
        assert steps[-1] == 12 and set(range(7, 13)) <= set(steps)
        assert (1 in steps) == ("cut" in damage)


def test_a_journal_that_is_as_long_as_its_checkpoint_says_is_cut_without_a_word(tmp_path):
    train_toys.trainer(tmp_path / "calm").run()
    interrupted(tmp_path / "run")
    assert not [text for text in resumed(tmp_path / "run") if "has lost" in text]
    for name in ("metrics.jsonl", "samples.md", "finished.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "calm" / name).read_bytes()


def test_b9_the_folder_is_made_durable_once_the_journals_are_there(tmp_path, monkeypatch):
    synced = []
    real = storage.sync

    def sync(path):
        synced.append((path, (tmp_path / "metrics.jsonl").exists()))
        real(path)

    monkeypatch.setattr(storage, "sync", sync)
    train_toys.trainer(tmp_path).run()
    assert synced.count((tmp_path, True)) == 1


def test_lines_that_cannot_be_read_are_counted_and_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_lines(path) == ([], 0)
    good = ['{"step": 1, "eval_loss": 2.0}', '{"step": 2}']
    path.write_bytes("\n".join([good[0], '{"step": ', "\0\0\0", "[1]", "[" * 90_000, good[1], ""]).encode())
    with open(path, "ab") as file:
        file.write(b'{"step": "\xff"}\n\n')
    assert read_lines(path) == ([json.loads(line) for line in good], 5)
    assert evaluations(tmp_path) == [{"loss": 2.0}]
    path.unlink(), path.mkdir()
    assert read_lines(path) == ([], 1)


@pytest.mark.parametrize("name", ["EIO", "ENOSPC", "EDQUOT"])
def test_d24_a_journal_that_cannot_be_written_names_itself(name, tmp_path):
    journal = Journal(tmp_path / "metrics.jsonl")
    number = getattr(errno, name)

    class Broken:
        def write(self, data):
            raise OSError(number, os.strerror(number))

    journal.close()
    journal._file = Broken()
    with pytest.raises(OSError) as error:
        journal.record({"step": 1})
    assert error.value.filename == str(tmp_path / "metrics.jsonl") and error.value.errno == number


@pytest.mark.parametrize("damage", [b"", b"\0" * 300, b"{", b"[]", None])
def test_b13_a_damaged_record_of_the_end_is_told_and_written_again(damage, tmp_path):
    train_toys.trainer(tmp_path).run()
    path = tmp_path / "finished.json"
    before = path.read_bytes()
    flipped = bytearray(before)
    flipped[before.index(b'"steps"') + 9] ^= 1  # another number of steps
    path.write_bytes(bytes(flipped) if damage is None else damage)
    with pytest.raises(CheckpointError):
        storage.read_record(path)
    with pytest.warns(Notice, match=r"finished\.json"):
        train_toys.trainer(tmp_path).run()
    assert path.read_bytes() == before


def test_e30_a_checkpoint_that_cannot_be_removed_does_not_end_the_run(tmp_path, monkeypatch):
    class Busy:
        """Removes no file of a checkpoint, as a network file system may."""

        def __getattr__(self, name):
            return getattr(os, name)

        def unlink(self, path):
            if "step-" in str(path):
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))
            os.unlink(path)

    monkeypatch.setattr(writes, "os", Busy())
    heard = []
    train_toys.trainer(tmp_path, observer=train_toys.told(heard), keep=1, max_steps=12).run()
    assert (tmp_path / "finished.json").exists()
    warnings = [rest[0] for event, *rest in heard if event == "warn"]
    assert warnings and all("busy" in text for text in warnings)
