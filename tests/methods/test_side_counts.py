"""Side networks: trained parameters on published shapes, and the golden values: isolation of the base, files."""

import copy
import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from graft.base import Base
from graft.methods._delta import Delta
from graft.methods.attention_fusion import AttentionFusion
from graft.methods.ladder import Foot, Ladder, Rung, Side
from graft.methods.lets import LeTS, Readout
from graft.methods.task_head import TaskHead
from graft.quant import quantise_model
from models import inputs, randomise, tiny_base, tiny_model
from shapes import bert_base, llama_2_7b, t5_base

TOTAL = {bert_base: 109_482_240, t5_base: 222_903_552, llama_2_7b: 6_738_415_616}
KEPT = (1, 2, 3, 5, 6, 7, 9, 10, 11)  # side blocks of the official T5-base: every fourth is dropped
once = functools.cache(lambda make: make())


def attached(make, method):
    """Without storage; the base serves the next test."""
    base = once(make)
    with torch.device("meta"):
        base.attach("x", method)
    return base.detach("x")


def numbers(adapter, kind):
    return sum(p.numel() for _, insert in adapter.inserts if type(insert) is kind for p in insert.parameters())


@pytest.mark.parametrize("make", TOTAL)
def test_the_shapes_are_the_published_models(make):
    assert once(make).count() == TOTAL[make]


@pytest.mark.parametrize(
    ("make", "method", "wanted", "percent"),
    [
        (bert_base, AttentionFusion(), 781, 0.0007),
        (t5_base, AttentionFusion(), 781, None),
        (llama_2_7b, AttentionFusion(), 4_129, None),
        (t5_base, Ladder(layers=KEPT), 3_878_706, 1.74),
        (llama_2_7b, Ladder(), 172_545_056, 2.56),
        (llama_2_7b, Ladder(layers=tuple(range(1, 32, 2))), 88_372_240, 1.31),
        (bert_base, LeTS(), 1_549_191, 1.42),  # published: 1.4
        (bert_base, LeTS(delta_layers=0), 1_478_415, 1.35),
        (bert_base, LeTS(delta_layers=0, num_labels=3), 1_478_415 + 385, None),
    ],
    ids=lambda value: getattr(value, "__name__", None) or (value.name() if hasattr(value, "name") else str(value)),
)
def test_the_count_and_its_share_of_the_base(make, method, wanted, percent):
    assert attached(make, method).count() == wanted
    if percent is not None:
        digits = len(str(percent).partition(".")[2])
        assert round(100 * wanted / TOTAL[make], digits) == percent


def test_the_parts_of_a_ladder_beside_llama():
    """The figures of the specification have no biases, gates and last norm: 101.2 M + 69.2 M + 2.1 M."""
    adapter = attached(llama_2_7b, Ladder())
    d, d_s, f_s, L = 4096, 4096 // 8, 11008 // 8, 32
    blocks, up = L * (4 * d_s**2 + 3 * d_s * f_s + 2 * d_s), d_s * d
    assert (blocks, (L + 1) * d * d_s, up) == (101_220_352, 69_206_016, 2_097_152)
    assert numbers(adapter, Foot) + numbers(adapter, Rung) == (L + 1) * (d * d_s + d_s)
    assert numbers(adapter, Side) == blocks + d_s + up + d + L


def test_the_parts_of_a_ladder_beside_t5():
    """Two stacks of nine blocks, each with its table of 32 distances, and one way up."""
    adapter = attached(t5_base, Ladder(layers=KEPT))
    d, d_s, f_s, heads = 768, 96, 384, 12
    encoder = 9 * (4 * d_s**2 + 2 * d_s * f_s + 2 * d_s)
    decoder = 9 * (8 * d_s**2 + 2 * d_s * f_s + 3 * d_s)
    assert numbers(adapter, Foot) + numbers(adapter, Rung) == 2 * 10 * (d * d_s + d_s)
    assert numbers(adapter, Side) == encoder + decoder + 2 * (32 * heads + d_s + 9) + d_s * d + d


def test_the_parts_of_lets():
    adapter = attached(bert_base, LeTS())
    d, h = 768, 192
    lstm = 2 * (4 * h * (d + h) + 2 * 4 * h)
    assert lstm == 1_477_632 == 5 * d**2 // 2 + 4 * d
    assert numbers(adapter, Readout) == lstm + 13 + 2 * 2 * h + 2
    assert numbers(adapter, Delta) == 2 * (4 * round(0.005 * d * d) + 2 * round(0.005 * d * 4 * d)) == 70_776


# Golden values of the specification

FAMILY = {"fusion": [AttentionFusion()], "ladder": [Ladder(reduction_factor=2)], "lets": [LeTS()]}
FAMILY["ladder_head"] = [Ladder(layers=(1,)), TaskHead()]


def answer(base, name):
    with base.using(name):
        output = base(**inputs("llama"))
    return output[0] if isinstance(output, list) else output.logits


@pytest.mark.parametrize("packed", [False, True], ids=["fp32", "nf4"])
@pytest.mark.parametrize("name", FAMILY)
def test_ten_steps_leave_every_byte_of_the_base(name, packed):
    base = Base(quantise_model(tiny_model("llama"), "nf4") if packed else tiny_model("llama"))
    before = copy.deepcopy(base.model.state_dict())
    adapter = base.attach("x", FAMILY[name])
    start = [p.clone() for p in adapter.parameters()]
    optimizer = torch.optim.AdamW(adapter.param_groups(1e-2))
    base.train()
    for step in range(1, 11):
        optimizer.zero_grad()
        answer(base, "x").square().mean().backward()
        optimizer.step()
        adapter.after_step(step, 10)
    assert all(not torch.equal(p, q) for p, q in zip(adapter.parameters(), start, strict=True))
    assert all(p.grad is None for p in base.model.parameters())
    assert all(torch.equal(tensor, before[key]) for key, tensor in base.model.state_dict().items())


CHILD = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from models import inputs, tiny_base
base, answers = tiny_base(), {}
for folder in Path(sys.argv[1]).iterdir():
    base.load_adapter(folder, folder.name)
    with base.using(folder.name), torch.no_grad():
        output = base(**inputs("llama"))
    answers[folder.name] = output[0] if isinstance(output, list) else output.logits
save_file(answers, sys.argv[2])
"""


@torch.no_grad()
def test_a_fresh_process_answers_the_same_from_the_files(tmp_path):
    base = tiny_base()
    for name, methods in FAMILY.items():
        randomise(base.attach(name, methods))
        base.adapters[name].save(tmp_path / "adapters" / name)
    found = os.pathsep.join(str(path) for path in (Path(__file__).parents[1], *sys.path))
    words = [sys.executable, "-c", CHILD, str(tmp_path / "adapters"), str(tmp_path / "answers")]
    subprocess.run(words, check=True, env=os.environ | {"PYTHONPATH": found})
    answers = load_file(tmp_path / "answers")
    assert answers.keys() == FAMILY.keys()
    for name, logits in answers.items():
        assert_close(answer(base, name), logits, atol=1e-6, rtol=1e-6)  # a process of its own may use other threads
