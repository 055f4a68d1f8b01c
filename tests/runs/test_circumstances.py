"""What a run writes down of when, with what and where it was trained, and what is made of it."""

import json
import platform
from importlib.metadata import version

import pytest
import torch

from graft.runs.circumstances import circumstances, machine, note_end, note_start, processor


def start(time):
    return {"start": {"time": f"2026-11-30T{time}+00:00"}}


def end(time):
    return {"end": {"time": f"2026-11-30T{time}+00:00"}}


def step(seconds, speed=10.0, peak=1.0):
    return {"step": 1, "seconds": seconds, "tokens_per_s": speed, "peak_mb": peak}


def test_a_run_is_as_long_as_from_its_start_to_its_end():
    known = circumstances([start("06:00:00"), step(2), step(3), end("06:01:30")])
    assert known.seconds == 90 and known.last == "2026-11-30T06:01:30+00:00" and len(known.starts) == 1


def test_of_a_start_that_was_killed_its_steps_count():
    lines = [start("06:00:00"), step(5), start("09:00:00"), {"resumed": 1}, step(7), end("09:00:20")]
    assert circumstances(lines).seconds == 25 and len(circumstances(lines).starts) == 2


@pytest.mark.parametrize(
    "damaged", [{"start": 1}, {"end": None}, {"end": {"time": "soon"}}, {"seconds": "x"}]
)
def test_damaged_lines_tell_nothing(damaged):
    assert circumstances([step(2), damaged, step(3)]).seconds == 5


def test_speed_is_the_mean_over_time_and_the_peak_the_highest():
    known = circumstances([step(1, 100.0, 5.0), step(3, 20.0, 9.0), {"warning": "hot"}, {"warning": "hot"}])
    assert known.speed == 160 / 4 and known.peak == 9 * 2**20 and known.warnings == ["hot"]


def test_what_is_written_down_is_read_again(tmp_path):
    note_start(tmp_path, {"trained": 3})
    note_end(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "timing.jsonl").read_text().splitlines()]
    known = circumstances(lines)
    assert known.newest["trained"] == 3 and known.newest["versions"]["torch"] == version("torch")
    assert known.newest["machine"]["threads"] == torch.get_num_threads() and known.last
    assert 0 <= known.seconds < 60


def test_a_machine_is_not_told_by_its_name():
    assert platform.node() not in json.dumps(machine()) or not platform.node()


def test_a_system_without_cpuinfo_still_has_a_processor(monkeypatch):
    monkeypatch.setattr("sys.platform", "darwin")
    assert processor() == (platform.processor() or platform.machine())
