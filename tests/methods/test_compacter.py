"""Compacter: H formed by torch.kron as the oracle, and the one shared tensor."""

import pytest
import torch
from block_oracle import rewired
from largest import Largest
from torch.nn import functional as F
from torch.testing import assert_close

from graft.base.base import Base
from graft.errors import UsageError
from graft.formats.peft import WEIGHTS, safe_open
from graft.methods.compacter import LPHM, Compacter, Hypercomplex, Rule
from models import inputs, randomise, tiny_base, tiny_model


def formed(layer):
    """H (k, d) of one layer, summed of its Kronecker products."""
    A, left, right = layer._rule[0].A, layer.W_left, layer.W_right
    return sum(torch.kron(A[i], left[i] @ right[i]) for i in range(len(A)))


@pytest.mark.parametrize(("n", "inputs_", "outputs", "rank"), [(4, 12, 32, 1), (2, 6, 10, 3), (1, 5, 7, 1)])
def test_a_layer_is_the_product_with_the_sum_of_kronecker_products(n, inputs_, outputs, rank):
    torch.manual_seed(0)
    layer = LPHM(Rule(n, 1.0), inputs_, outputs, rank).double()
    layer._rule[0].double()
    with torch.no_grad():
        layer.b.normal_()
    x = torch.randn(2, 3, inputs_, dtype=torch.float64)
    assert_close(layer(x), x @ formed(layer) + layer.b)


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_the_blocks_answer_as_written_by_hand(family):
    model = tiny_model(family)
    base = Base(model)
    adapter = base.attach("x", Compacter(m=16, train_norms=False))
    randomise(adapter, scale=0.5)
    keywords = inputs(family)
    with base.using("x"), torch.no_grad():
        ours = base(**keywords).logits
    before = base(**keywords).logits

    def behind(insert):
        down, up = insert.down, insert.up
        gelu = lambda u: F.gelu(u, approximate="tanh")
        return lambda h, r, norm: norm(h + gelu(h @ formed(down) + down.b) @ formed(up) + up.b + r)

    wanted = [(n, kind) for n in range(4 if family == "t5" else 2) for kind in ("attention", "mlp")]
    ends = {place: behind(insert) for place, (_, insert) in zip(wanted, adapter.inserts, strict=True)}
    ids = keywords.pop("ids")
    assert_close(ours, rewired(model, ends)(input_ids=ids, **keywords).logits, atol=3e-5, rtol=1e-4)
    assert (ours - before).abs().max() > 1e-2


def test_one_rule_serves_the_whole_model_and_lies_in_the_file_once(tmp_path):
    base = tiny_base()
    adapter = base.attach("x", Compacter(train_norms=False))
    randomise(adapter)
    adapter.save(tmp_path)
    with safe_open(tmp_path / WEIGHTS, "pt") as file:
        # safetensors iterates by keys() only
        shared = [key for key in file.keys() if "rule" in key]  # noqa: SIM118
        assert shared == ["base_model.phm_rule"] and file.get_tensor(shared[0]).shape == (4, 4, 4)
    with base.using("x"):
        before = base(**inputs("llama")).logits
        with torch.no_grad():
            adapter.inserts[0][1].rule.A.zero_()
        for _, insert in adapter.inserts:
            assert not formed(insert.down).any()
        assert (base(**inputs("llama")).logits - before).abs().max() > 1e-2


def test_the_rule_is_not_decayed():
    adapter = tiny_base().attach("x", Compacter())
    groups = adapter.param_groups(1e-3)
    assert sum(len(group["params"]) for group in groups) == len(adapter.parameters())
    rule = adapter.inserts[0][1].rule.A
    assert [g["weight_decay"] for g in groups if any(p is rule for p in g["params"])] == [0.0]


def test_the_start_is_that_of_the_paper():
    torch.manual_seed(0)
    adapter = tiny_base("llama", hidden_size=512).attach("x", Compacter(phm_dim=8, m=512))
    insert = adapter.inserts[0][1]
    assert abs(insert.rule.A.std() - 1e-4) < 1e-5
    bound = 2**0.5 * (6 / (512 / 8 + 1)) ** 0.5
    for matrix in (insert.down.W_left, insert.up.W_right):
        assert (
            0.95 * bound < matrix.abs().max() <= bound and abs(matrix.std() - bound / 3**0.5) < 0.05 * bound
        )


def test_widths_that_n_does_not_divide_are_refused():
    with pytest.raises(UsageError, match="phm_dim"):
        tiny_base().attach("x", Compacter(m=6))
    with pytest.raises(UsageError, match="phm_dim"):
        tiny_base().attach("x", Compacter(phm_dim=3))


def test_h_is_never_built_in_forward_or_backward():
    d, m, rows = 1024, 512, 3
    rule = Rule(4, 1.0)
    insert = Hypercomplex(None, LPHM(rule, d, m, 1), LPHM(rule, m, d, 1), Compacter(), d)
    x = torch.randn(rows, d, requires_grad=True)
    with Largest() as largest:
        insert.delta(x).square().sum().backward()
    assert x.grad.any() and rule.A.grad.any() and insert.up.W_right.grad.any()
    assert largest.seen <= rows * d
