"""The time of a step, by rates. Right values: arithmetic."""

import pytest

from graft.planning.costs import Cost, Facts, Held, Law, Work
from graft.planning.estimate import Room, estimate
from graft.planning.seconds import ATTENTION, OVERHEAD, PASSES, UPDATE, Rates, of_work, pace

RATES = Rates(products=2e11, fp32=1e11, decoding=4e9, reading=2e10)


def facts(work, **changes):
    held = Held(dict.fromkeys(("weights", "adapter", "gradients", "optimizer"), 0), 1, 1, 1, True, 0, 0, 0)
    cost = Cost(0, 0, work)
    law = Law(0.0, 1.0, 0.0)
    given = {
        "base": "x", "held": held, "rows": 2, "length": 512, "step_rows": 8, "steps": None,
        "checkpointing": False, "budget": 0, "rank": 0, "quantisable": True, "run": cost, "law": law,
        "recomputed": cost, "evaluation": cost,
    }  # fmt: skip
    return Facts(**given | changes)


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (Work(products=1e11), 1.0),
        (Work(attention=1e11), 2 / ATTENTION),
        (Work(decoded=4e9), 1.0),
        (Work(written=2e10), PASSES),
        (Work(operations=1000), 1000 * OVERHEAD),
    ],
    ids=["products", "attention", "decoded", "written", "operations"],
)
def test_each_kind_of_work_takes_its_time(work, expected):
    assert of_work(work, RATES) == pytest.approx(expected)


def test_a_step_is_its_micro_batches_and_one_update():
    one = pace(facts(Work(products=1e11)), RATES)
    assert one.step == pytest.approx(4.0)  # 8 rows, 2 at once
    assert one.tokens == pytest.approx(8 * 512 / 4.0)
    held = Held({**facts(Work()).held.parts, "gradients": 10**9}, 1, 1, 1, True, 2 * 10**9, 0, 0)
    more = pace(facts(Work(products=1e11), held=held), RATES)
    assert more.step - one.step == pytest.approx(UPDATE * 4e9 / RATES.reading)


def test_a_plan_says_the_time_of_a_run_or_how_to_measure_it():
    room = Room(1 << 30, "cpu", 0)
    known = estimate(facts(Work(products=1e11), steps=100), room, RATES)
    assert "1,024 tokens/s; 100 steps in 7 min at most" in str(known.pace)
    unknown = estimate(facts(Work(products=1e11)), room)
    assert unknown.pace is None
    shown = str(type(unknown)(**{**vars(unknown), "dtype": "bf16"}).__str__())
    assert "not measured" in shown and "graft doctor --bench" in shown
