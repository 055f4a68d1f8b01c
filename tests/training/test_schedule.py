import math

import pytest
import torch
from transformers.optimization import get_scheduler

from graft.errors import UsageError
from graft.training.schedule import SCHEDULES, factor


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        ("linear", 0, 0.1),
        ("linear", 4, 0.5),
        ("linear", 10, 1.0),
        ("linear", 55, 0.5),
        ("linear", 100, 0.0),
        ("cosine", 10, 1.0),
        ("cosine", 40, 0.75),
        ("cosine", 55, 0.5),
        ("constant", 4, 0.5),
        ("constant", 99, 1.0),
    ],
)
def test_values_by_hand_with_ten_warm_up_steps_of_a_hundred(schedule, step, expected):
    assert math.isclose(factor(schedule, step, 100, 0.1), expected, abs_tol=1e-12)


@pytest.mark.parametrize(
    ("schedule", "theirs"), [("linear", "linear"), ("cosine", "cosine"), ("constant", "constant_with_warmup")]
)
@pytest.mark.parametrize("warmup", [0, 7])
def test_after_the_warm_up_every_step_has_the_factor_of_transformers(schedule, theirs, warmup):
    """In the warm-up ours is one step ahead: theirs begins at 0, so that its first step changes nothing."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(theirs, optimizer, num_warmup_steps=warmup, num_training_steps=53)
    for step in range(53):
        ours = factor(schedule, step - (1 if step and step < warmup else 0), 53, warmup)
        if step or not warmup:
            assert math.isclose(ours, optimizer.param_groups[0]["lr"], abs_tol=1e-12)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0.0, 0.03, 0.5, 0.99])
@pytest.mark.parametrize("total", [1, 2, 3, 100])
def test_no_step_of_any_run_has_the_rate_0(schedule, warmup, total):
    assert all(factor(schedule, step, total, warmup) > 0 for step in range(total))


def test_a_run_of_one_step_takes_it_at_the_peak():
    assert factor("linear", 0, 1, 0.03) == 1.0


def test_an_unknown_schedule_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'cosine'"):
        factor("cosin", 0, 10, 0.0)
