"""KronA^B and KronA^B_res against torch.kron beside the feed-forward network; no product is built."""

import pytest
import torch
from largest import Largest
from torch.testing import assert_close

from graft.methods.krona_b import KronAB
from models import inputs, randomise, tiny_base


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize("residual", [False, True])
def test_the_network_answers_with_the_product_beside_it(family, residual):
    base = tiny_base(family)
    adapter = base.attach("x", KronAB(scale=0.7, residual=residual))
    randomise(adapter)
    with base.using("x"), torch.no_grad():
        ours = base(**inputs(family)).logits
    before = base(**inputs(family)).logits
    networks = [m for m in base.model.modules() if type(m).__name__ in ("LlamaMLP", "T5DenseActDense")]
    for network, (_, insert) in zip(networks, adapter.inserts, strict=True):
        product = 0.7 * torch.kron(insert.A, insert.B).detach()
        if residual:
            product = product + insert.s_res.detach() * torch.eye(64)
        network.register_forward_hook(lambda module, args, y, H=product: y + args[0] @ H.T)
    assert_close(ours, base(**inputs(family)).logits, atol=2e-5, rtol=1e-4)
    assert (ours - before).abs().max() > 1e-2


def test_the_residual_may_start_at_one():
    base = tiny_base()
    before = base(**inputs("llama")).logits
    base.attach("x", KronAB(residual=True))
    base.attach("y", KronAB(residual=True, residual_start=1.0))
    with base.using("x"):
        assert torch.equal(base(**inputs("llama")).logits, before)
    with base.using("y"):
        assert (base(**inputs("llama")).logits - before).abs().max() > 1e-2


def test_no_matrix_of_d_times_d_is_built():
    base = tiny_base("llama", hidden_size=256, num_hidden_layers=1)
    ((_, insert),) = base.attach("x", KronAB()).inserts
    randomise(base.adapters["x"])
    x, y = torch.randn(3, 256, requires_grad=True), torch.randn(3, 256)
    with Largest() as largest:
        insert(x, y).square().sum().backward()
    assert x.grad.any() and insert.A.grad.any() and insert.B.grad.any() and largest.seen <= 3 * 256
