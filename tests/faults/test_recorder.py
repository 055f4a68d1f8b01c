"""The recorder sees what writers do, and its worlds lose exactly what was not synced."""

import os

import pytest
import recorder
from cells import Cell, Fault, Outcome, Tally, counts, tried
from crash import Crashes, Scene

from graft import storage
from graft.storage import writes


def record(folder, deed):
    with recorder.recording(folder) as seen:
        deed(folder)
    return seen.operations


def test_files_of_other_writers_are_operations_too(tmp_path):
    def deed(folder):
        (folder / "theirs").write_bytes(b"12345678")
        storage.replace(folder / "ours", b"1")

    kinds = [(kind, path) for kind, path, _ in record(tmp_path / "run", deed)]
    assert kinds[0] == ("content", "theirs") and ("sync", ".") in kinds
    assert kinds[-2][0] == "rename"


@pytest.mark.parametrize(("world", "left"), [("applied", 8), ("lost", 0), ("cut", 4), ("unnamed", None)])
def test_a_world_keeps_what_a_crash_keeps(world, left, tmp_path):
    operations = record(tmp_path / "run", lambda folder: (folder / "file").write_bytes(b"12345678"))
    node = recorder.after(operations, 0, len(operations))
    recorder.materialise(node, world, tmp_path / "state")
    file = tmp_path / "state" / "file"
    assert (file.stat().st_size if file.exists() else None) == left


@pytest.mark.parametrize("world", recorder.WORLDS)
def test_what_was_written_durably_is_there_in_every_world(world, tmp_path):
    operations = record(tmp_path / "run", lambda folder: storage.replace(folder / "file", b"12345678"))
    recorder.materialise(recorder.after(operations, 0, len(operations)), world, tmp_path / "state")
    assert (tmp_path / "state" / "file").read_bytes() == b"12345678"


def hasty(path, data):
    """Replace a file without syncing it: a mistake that the harness must find."""
    with open(f"{path}.new", "wb") as file:
        file.write(data)
    writes.os.rename(f"{path}.new", path)


@pytest.mark.parametrize(("write", "found"), [(storage.replace, set()), (hasty, {"lost", "cut"})])
def test_a_writer_that_forgets_to_sync_is_found_and_a_careful_one_is_not(write, found, tmp_path):
    begin = 0
    with recorder.recording(tmp_path / "run") as seen:
        storage.replace(tmp_path / "run" / "file", b"old")
        begin = len(seen.operations)
        write(tmp_path / "run" / "file", b"new")

    def judge(state, count):
        if (state / "file").read_bytes() not in (b"old", b"new"):
            raise Fault("neither")

    stand = Crashes(tmp_path, Scene(seen.operations, judge, begin))
    tally = Tally()
    for number in range(stand.total):
        tally.add(stand, number)
    assert {name.rpartition("; ")[2] for _, name, _ in tally.failures} == found


class Odd:
    total = 5

    def name(self, number):
        return f"number {number}"

    def case(self, number):
        if number % 2:
            raise Fault("odd") if number == 1 else ValueError("three")
        return Outcome(facts={"largest": number}, sums={"all": number})

    def close(self):
        self.closed = True


def test_a_tally_counts_what_held_and_what_failed_and_says_why(tmp_path):
    stand = Odd()
    tally = tried(Cell("odd", "numbers", lambda folder: stand, counts(None, None, None)), tmp_path, "small")
    assert (tally.tried, tally.verdicts, tally.most, tally.sums) == (
        5, {"held": 3, "failed": 2}, {"largest": 4}, {"all": 6})  # fmt: skip
    assert [failure[1:] for failure in tally.failures] == [
        ["number 1", "odd"],
        ["number 3", "ValueError: three"],
    ]
    assert stand.closed


def test_a_sample_of_cases_is_the_same_every_time():
    cell = Cell("odd", "numbers", lambda folder: Odd(), counts(10, None, None))
    assert cell.numbers(1000, "small") == cell.numbers(1000, "small") != sorted(range(10))
    assert len(cell.numbers(1000, "small")) == 10 and list(cell.numbers(7, "small")) == list(range(7))


def test_the_real_module_is_back_after_recording(tmp_path):
    record(tmp_path / "run", lambda folder: None)
    assert writes.os is os
