"""A run whose loss rose says so; a noisy one does not."""

import json
import random

import pytest

from graft.training.trend import worsened


def told(tmp_path, losses):
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps({"step": n, "loss": loss}) + "\n" for n, loss in enumerate(losses, 1)))
    return worsened(file)


@pytest.mark.parametrize("after", [6.0, 40.0, 1e9])
def test_a_loss_that_rose_is_told_with_both_numbers(after, tmp_path):
    said = told(tmp_path, [2.0] * 20 + [after] * 20)
    assert "from 2 in the first 8 steps" in said and f"to {after:.3g} in the last 8" in said


@pytest.mark.parametrize("seed", range(20))
def test_noise_is_no_rise(seed, tmp_path):
    chance = random.Random(seed)
    assert not told(tmp_path, [max(0.01, 2.0 + chance.gauss(0, 0.8)) for _ in range(60)])


@pytest.mark.parametrize("losses", [[], [2.0], [2.0, 9.0], [-1.0] * 10 + [5.0] * 10])
def test_too_few_steps_and_other_losses_say_nothing(losses, tmp_path):
    assert not told(tmp_path, losses)


def test_a_damaged_line_is_passed_over(tmp_path):
    told(tmp_path, [2.0] * 20 + [9.0] * 20)
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b"\0\xff{\n[1]\n" + file.read_bytes()[:-5])
    assert "rose from 2" in worsened(file)
