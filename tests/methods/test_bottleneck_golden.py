"""The golden values of the specification that concern added modules: a Kronecker product, birth, isolation, files."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from graft.base import Base
from graft.methods.adamix import AdaMix
from graft.methods.adapter_fusion import AdapterFusion
from graft.methods.compacter import LPHM, Compacter, Rule
from graft.methods.houlsby import Houlsby
from graft.methods.krona_b import KronAB
from graft.methods.parallel import Parallel
from graft.methods.pfeiffer import Pfeiffer
from graft.quant import quantise_model
from models import inputs, tiny_base, tiny_model

A, B = torch.tensor([[1.0, 2], [3, 4]]), torch.tensor([[0.0, 1], [1, 0]])
PRODUCT = torch.tensor([[0.0, 1, 0, 2], [1, 0, 2, 0], [0, 3, 0, 4], [3, 0, 4, 0]])
NEUTRAL = [
    Houlsby(),
    Pfeiffer(),
    Pfeiffer(mh_adapter=True),
    Parallel(),
    Parallel(scaling="learned"),
    KronAB(),
    AdaMix(),
]
FAMILY = [Houlsby(), Pfeiffer(), Parallel(), Compacter(), KronAB(residual=True), AdaMix(), AdapterFusion()]


def test_the_kronecker_product_of_krona_b():
    base = tiny_base("llama", hidden_size=4, num_attention_heads=1, num_key_value_heads=1)
    insert = base.attach("x", KronAB(scale=1.0)).inserts[0][1]
    with torch.no_grad():
        insert.A.copy_(A)
        insert.B.copy_(B)
    assert torch.equal(insert.delta(torch.eye(4)).T, PRODUCT)  # column by column, as it multiplies from the left


def test_the_kronecker_product_of_compacter():
    layer = LPHM(Rule(2, 1.0), 4, 4, 2)
    with torch.no_grad():
        layer._rule[0].A.copy_(torch.stack([A, torch.zeros(2, 2)]))
        layer.W_left.copy_(torch.eye(2).expand(2, 2, 2))
        layer.W_right.copy_(B.expand(2, 2, 2))
    assert torch.equal(layer(torch.eye(4)), PRODUCT)  # row by row, as it multiplies from the right


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_a_newborn_answers_as_the_base_bit_for_bit(family):
    base = tiny_base(family)
    before = base(**inputs(family)).logits
    for method in NEUTRAL:
        base.attach("x", method)
        with base.using("x"):
            assert torch.equal(base(**inputs(family)).logits, before), method
        base.detach("x")


def test_a_newborn_compacter_answers_nearly_as_the_base():
    base = tiny_base()
    base.attach("x", Compacter())
    with base.using("x"):
        assert_close(
            base(**inputs("llama")).logits, base(**inputs("llama"), adapters=[None] * 3).logits, atol=1e-3, rtol=0
        )


def stir(adapter):
    """Random values in all that is kept, in fused adapters too."""
    generator = torch.Generator().manual_seed(0)
    for tensor in adapter.tensors().values():
        tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.5)


def digest(model):
    """SHA-256 of every byte of a model, packed codes as well."""
    found = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        found.update(key.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


@pytest.mark.parametrize("packed", [False, True], ids=["fp32", "nf4"])
def test_ten_steps_leave_every_byte_of_the_base(packed):
    base = Base(quantise_model(tiny_model("llama"), "nf4") if packed else tiny_model("llama"))
    before, ids = digest(base.model), inputs("llama")["ids"]
    for method in FAMILY:
        adapter = base.attach("x", method)
        optimizer = torch.optim.AdamW(adapter.param_groups(1e-2))
        base.train()
        start = [p.clone() for p in adapter.parameters()]
        for _ in range(10):
            with base.using("x"):
                loss = base(ids, labels=ids).loss + (adapter.extra_loss([]) or 0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        base.train(False)
        assert any(not torch.equal(p, q) for p, q in zip(adapter.parameters(), start, strict=True)), method
        assert all(p.grad is None for p in base.model.parameters()) and digest(base.model) == before, method
        base.detach("x")


CHILD = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from models import inputs, tiny_base
base, answers = tiny_base(), {}
for folder in sorted(Path(sys.argv[1]).iterdir()):
    base.load_adapter(folder, folder.name)
    with base.using(folder.name), torch.no_grad():
        answers[folder.name] = base(**inputs("llama")).logits
save_file(answers, sys.argv[2])
"""


def test_a_fresh_process_answers_the_same_from_the_files(tmp_path):
    base, wanted = tiny_base(), {}
    for method in FAMILY:
        name = method.name()
        adapter = base.attach(name, method)
        stir(adapter)
        places = {f"base_model.model.{site.name}." for site, _ in adapter.inserts}
        assert all(key.startswith((*places, "base_model.phm_rule")) for key in adapter.state())
        adapter.save(tmp_path / "adapters" / name)
        with base.using(name), torch.no_grad():
            wanted[name] = base(**inputs("llama")).logits
        assert (wanted[name] - base(**inputs("llama")).logits).abs().max() > 1e-2
    found = os.pathsep.join(str(p) for p in (Path(__file__).parents[1], *sys.path))
    subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "adapters"), str(tmp_path / "answers")],
        check=True, env=os.environ | {"PYTHONPATH": found},
    )  # fmt: skip
    answers = load_file(tmp_path / "answers")
    assert answers.keys() == wanted.keys()
    for name, logits in wanted.items():
        assert_close(answers[name], logits, atol=1e-6, rtol=1e-6)  # a process of its own may use other threads
