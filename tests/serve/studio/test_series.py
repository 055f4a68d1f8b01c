"""The numbers of a run, read while it writes them."""

import json
from time import perf_counter

import numpy as np
import pytest

from graft.serve.studio.series import MEAN, MOST, TREND, Series, thinned

LOSSES = [4.0, 3.0, 2.5, 2.25, 2.0]


def add(path, *records, end="\n"):
    with open(path, "a", encoding="utf-8") as file:
        file.write("\n".join(map(json.dumps, records)) + end)


def step(number, loss):
    return {"step": number, "epoch": 0.5, "loss": loss, "lr": 1e-3}


@pytest.fixture
def folder(tmp_path):
    add(tmp_path / "timing.jsonl", {"start": {"time": "2026-11-30T06:11:08+00:00"}})
    for number, loss in enumerate(LOSSES, 1):
        add(tmp_path / "metrics.jsonl", step(number, loss))
        add(tmp_path / "timing.jsonl", {"step": number, "seconds": 2.0, "tokens_per_s": 100.0})
    return tmp_path


def test_every_number_stands_over_its_step(folder):
    series = Series(folder)
    series.read()
    assert series.view()["loss"] == [[1, 2, 3, 4, 5], LOSSES]
    assert "epoch" not in series.view() and series.step() == 5
    assert series.seconds() == (10.0, 2.0)


def test_the_running_mean_is_the_plain_one_of_the_first_steps(folder):
    series = Series(folder)
    series.read()
    mean, by_hand = LOSSES[0], []
    for count, loss in enumerate(LOSSES, 1):
        mean += max(TREND, 1 / count) * (loss - mean)
        by_hand.append(mean)
    assert series.view()["loss" + MEAN][1] == pytest.approx(by_hand, rel=1e-5)


def test_only_new_steps_come_after_one_that_is_known(folder):
    series = Series(folder)
    series.read()
    add(folder / "metrics.jsonl", step(6, 1.9), step(7, 1.8))
    series.read()
    assert series.view(since=5)["loss"] == [[6, 7], [1.9, 1.8]]
    assert series.generation == 1


def test_a_line_that_is_being_written_waits_for_its_end(folder):
    series = Series(folder)
    series.read()
    text = json.dumps(step(6, 1.9))
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write(text[:20])
        file.flush()
        series.read()
        assert series.step() == 5
        file.write(text[20:] + "\n")
    series.read()
    assert series.view(since=5)["loss"] == [[6], [1.9]]


def test_a_resumed_run_repeats_its_steps_in_the_place_of_those_that_were_lost(folder):
    series = Series(folder)
    series.read()
    kept = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)[:3]
    (folder / "metrics.jsonl").write_text("".join(kept))  # back to the checkpoint after step 3
    add(folder / "timing.jsonl", {"resumed": 3})
    add(folder / "metrics.jsonl", step(4, 9.0), step(5, 8.0), step(6, 7.0))  # longer than it ever was
    add(folder / "timing.jsonl", {"step": 4, "seconds": 1.0, "tokens_per_s": 50.0})
    series.read()
    assert series.view()["loss"] == [[1, 2, 3, 4, 5, 6], [4.0, 3.0, 2.5, 9.0, 8.0, 7.0]]
    assert series.view()["seconds"] == [[1, 2, 3, 4], [2.0, 2.0, 2.0, 1.0]]
    assert series.generation == 2


@pytest.mark.parametrize("lines", [0, 1, 9])
def test_a_file_that_was_written_anew_is_read_anew(folder, lines):
    series = Series(folder)
    series.read()
    (folder / "metrics.jsonl").write_text("")
    for number in range(1, lines + 1):
        add(folder / "metrics.jsonl", step(number, 10.0 * number))
    series.read()
    assert series.view().get("loss", [[], []])[1] == [10.0 * number for number in range(1, lines + 1)]
    assert series.generation == 2


@pytest.mark.parametrize(
    "line", ["", "{", "[1]", '{"step": "x", "loss": 1}', '{"step": 6, "loss": NaN}', "[" * 9999]
)
def test_a_damaged_line_is_passed_over(folder, line):
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write(line + "\n")
    add(folder / "metrics.jsonl", step(6, 1.9))
    series = Series(folder)
    series.read()
    assert series.view()["loss"] == [[1, 2, 3, 4, 5, 6], [*LOSSES, 1.9]]


def test_a_place_is_told_in_tokens_and_in_seconds(folder):
    series = Series(folder)
    series.read()
    assert series.view("tokens")["loss"][0] == [200, 400, 600, 800, 1000]
    assert series.view("seconds")["loss"][0] == [2, 4, 6, 8, 10]
    assert series.view("tokens", low=300, high=700)["loss"] == [[400, 600], [3.0, 2.5]]


def test_a_part_of_the_steps_is_seen_alone(folder):
    series = Series(folder)
    series.read()
    assert series.view(low=2, high=4)["loss"] == [[2, 3, 4], LOSSES[1:4]]


@pytest.mark.parametrize("count", [5, 2_000, 2_001, 9_999, 100_000])
def test_a_thinned_curve_keeps_its_ends_and_every_spike(count):
    x, y = np.arange(count, dtype=float), np.sin(np.arange(count) / 50)
    spikes = {count // 3: 40.0, count // 2: -50.0, count - 2: 60.0}
    for place, value in spikes.items():
        y[place] = value
    places, values = thinned(x, y, MOST)
    assert len(places) <= MOST and (np.diff(places) > 0).all()
    assert places[0] == 0 and places[-1] == count - 1
    assert set(spikes.values()) <= set(values.tolist())
    assert (values == y[places.astype(int)]).all()


def test_a_run_without_files_has_no_numbers(tmp_path):
    series = Series(tmp_path / "none")
    series.read()
    assert series.view() == {} and series.step() is None and series.seconds() == (0.0, None)


@pytest.mark.slow
def test_of_a_hundred_thousand_steps_only_new_bytes_are_read(tmp_path, monkeypatch, capsys):
    with open(tmp_path / "metrics.jsonl", "w") as metrics, open(tmp_path / "timing.jsonl", "w") as timing:
        for number in range(1, 100_001):
            metrics.write(json.dumps(step(number, 1 + 1 / number) | {"grad_norm": 1.0}) + "\n")
            timing.write(
                json.dumps({"step": number, "seconds": 0.1, "tokens_per_s": 9.0, "memory_mb": 1.0}) + "\n"
            )
    series, took = Series(tmp_path), {}

    def timed(what, action):
        begun = perf_counter()
        found = action()
        took[what] = perf_counter() - begun
        return found

    timed("first reading", series.read)
    view = timed("a view", series.view)
    assert all(len(x) <= MOST for x, _ in view.values()) and len(view["loss"][0]) > MOST / 2
    lines = []
    whole = json.loads
    monkeypatch.setattr(json, "loads", lambda text: lines.append(text) or whole(text))
    add(tmp_path / "metrics.jsonl", step(100_001, 1.0))
    timed("another step", series.read)
    assert len(lines) == 1 and series.view(since=100_000)["loss"] == [[100_001], [1.0]]
    with capsys.disabled():
        print("\n" + ", ".join(f"{what} {1000 * seconds:.1f} ms" for what, seconds in took.items()))
