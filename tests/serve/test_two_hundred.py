"""Adapters of five kinds on one NF4 base: eight different ones in a batch answer as each alone."""

import pytest
from served import KINDS, Waited, write_adapters

from graft.models.load import load
from graft.serve.registry import Registry
from graft.serve.worker import Worker

PROMPTS = ("The kettle", "Write a product", "Description:", "A lamp that")


@pytest.mark.parametrize("count", [12, pytest.param(204, marks=pytest.mark.slow)])
def test_eight_different_adapters_of_many_answer_together_as_each_alone(count, tmp_path):
    base = load("seedling", quant="nf4", dtype="fp32")
    names = write_adapters(base, tmp_path, count)
    assert len({name.split("-")[0] for name in names}) == len(KINDS) >= 5
    plan = [(PROMPTS[number % 4], name) for number, name in enumerate(names)]
    wanted = []
    for prompt, name in plan:
        base.load_adapter(tmp_path / name, "alone")
        wanted.append(base.complete([prompt], ["alone"], max_new_tokens=8, logprobs=0)[0])
        base.detach("alone")
    worker = Worker(base, Registry(base, tmp_path), rows=8, waiting=count)
    try:
        jobs = [Waited(base, prompt, name, logprobs=0) for prompt, name in plan]
        for waited in jobs:
            worker.submit(waited.job)
        for waited, want in zip(jobs, wanted, strict=True):
            got = waited.result()
            assert (got.text, got.tokens, got.finish_reason) == (want.text, want.tokens, want.finish_reason)
            assert got.logprobs == pytest.approx(want.logprobs, abs=1e-5)
        assert len(base.adapters) == count  # all of them stay in memory, without a budget
    finally:
        worker.close(60)
