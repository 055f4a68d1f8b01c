import math

import pytest
import torch
from transformers.optimization import get_scheduler

from graft.errors import UsageError
from graft.training.schedule import factor


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        ("linear", 0, 0.0),
        ("linear", 5, 0.5),
        ("linear", 10, 1.0),
        ("linear", 55, 0.5),
        ("linear", 100, 0.0),
        ("cosine", 10, 1.0),
        ("cosine", 40, 0.75),
        ("cosine", 55, 0.5),
        ("constant", 5, 0.5),
        ("constant", 99, 1.0),
    ],
)
def test_values_by_hand_with_ten_warm_up_steps_of_a_hundred(schedule, step, expected):
    assert math.isclose(factor(schedule, step, 100, 0.1), expected, abs_tol=1e-12)


@pytest.mark.parametrize(
    ("schedule", "theirs"), [("linear", "linear"), ("cosine", "cosine"), ("constant", "constant_with_warmup")]
)
@pytest.mark.parametrize("warmup", [0, 7])
def test_every_step_has_the_factor_of_transformers(schedule, theirs, warmup):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(theirs, optimizer, num_warmup_steps=warmup, num_training_steps=53)
    for step in range(53):
        assert math.isclose(
            factor(schedule, step, 53, warmup), optimizer.param_groups[0]["lr"], abs_tol=1e-12
        )
        optimizer.step()
        scheduler.step()


def test_an_unknown_schedule_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'cosine'"):
        factor("cosin", 0, 10, 0.0)
