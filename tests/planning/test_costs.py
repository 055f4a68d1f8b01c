"""The numbers that a plan is reckoned from. Right values: traced steps of other shapes, and arithmetic."""

import doctest
import json
from dataclasses import asdict

import pytest
import torch
from transformers import AutoConfig

from graft.methods.lora import LoRA
from graft.planning import costs, seconds
from graft.planning.costs import Cost, Law, Work, facts_of
from graft.planning.estimate import Room, estimate
from graft.planning.sketch import Step, Traced
from graft.planning.trace import Shape, trace
from graft.stages.sft import SFT
from models import CONFIGS

PLAIN = {"quant": "none", "group_size": 0, "dtype": torch.float32, "task": None}
METHODS = [LoRA(r=4, target_modules="all-linear")]


def config(**changes):
    return AutoConfig.for_model("llama", **CONFIGS["llama"] | {"num_hidden_layers": 4} | changes)


@pytest.fixture(scope="module")
def facts():
    return trace(config(max_position_embeddings=4096), METHODS, Shape(2, 128, 2), PLAIN)


def test_the_examples_hold():
    for module in (costs, seconds):
        assert doctest.testmod(module).attempted >= 1 and not doctest.testmod(module).failed


def test_facts_are_the_same_after_a_file(facts):
    assert facts_of(json.loads(json.dumps(asdict(facts)))) == facts


def test_the_law_of_a_step_holds_for_shapes_that_were_not_traced(facts):
    traced = Traced(config(max_position_embeddings=4096), METHODS, SFT, uniform=True, **PLAIN)
    for rows, length in ((24, 128), (3, 1024), (16, 256)):
        real = traced.cost(Step(rows, length)).tensors
        assert facts.law.at(rows, length) == pytest.approx(real, rel=0.05), (rows, length)


def test_what_the_law_says_to_fit_fits_and_one_more_does_not():
    law = Law(1000.0, 10.0, 0.01)
    rows = law.rows(64, 1e6)
    assert law.at(rows, 64) <= 1e6 < law.at(rows + 1, 64)
    length = law.length(3, 1e6)
    assert law.at(3, length) <= 1e6 < law.at(3, length + 1)
    assert law.rows(64, 0) == law.length(3, 0) == 0


def test_the_largest_shapes_of_a_plan_fit_and_larger_ones_do_not(facts):
    room = Room(1 << 30, "cpu", 1 << 29)
    planned = estimate(facts, room)
    free = room.available - planned.peaks["train"] + planned.parts["step"]
    assert facts.law.at(planned.micro_batch, 128) <= free < facts.law.at(planned.micro_batch + 1, 128)
    assert planned.longest == 4096 or facts.law.at(2, planned.longest + 1) > free
    held = facts.held.parts
    left = room.available - room.process - held["weights"]
    assert planned.adapters * held["adapter"] <= left < (planned.adapters + 1) * held["adapter"]


def test_rows_that_are_too_long_for_the_model_are_not_promised():
    found = trace(config(max_position_embeddings=64), METHODS, Shape(1, 64, 1), PLAIN)
    assert estimate(found, Room(1 << 40, "cpu", 0)).longest == 64


def test_a_step_too_large_for_the_machine_names_no_rows(facts):
    planned = estimate(facts, Room(1 << 20, "cpu", 1 << 20))
    assert (planned.micro_batch, planned.longest, planned.fits) == (0, 0, False)
    assert "not even one row fits" in str(planned)


def test_a_step_that_allocates_more_for_what_it_holds_leaves_more_holes():
    costs = [Cost(100 << 20, 100 << 20, Work(written=times * (100 << 20))) for times in (1, 3, 5, 50)]
    shares = [cost.holes("cpu") / cost.heap for cost in costs]
    assert shares == sorted(shares) and shares[0] < shares[1] < shares[2] < shares[3] <= 0.8
    assert costs[3].holes("cuda") == 0
