"""Kronecker and Hadamard products: equal to torch.kron, and never built."""

import pytest
import torch
from largest import Largest
from torch.testing import assert_close
from transformers import T5Config

from graft.core.insert import Insert
from graft.core.site import Site
from graft.layers.kronecker import kron_linear
from graft.methods.krona import KronA
from graft.methods.loha import LoHa
from graft.methods.lokr import LoKr
from graft.planning.sketch import sketch, unreal


@pytest.mark.parametrize("shapes", [((2, 3), (4, 5)), ((1, 7), (3, 1)), ((6, 2), (2, 6))])
def test_the_product_with_a_vector_equals_torch_kron(shapes):
    torch.manual_seed(0)
    A, B = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    x = torch.randn(2, 3, A.shape[1] * B.shape[1], dtype=torch.float64)
    assert_close(kron_linear(x, A, B), x @ torch.kron(A, B).T)
    left, right = torch.randn(len(B), 2, dtype=torch.float64), torch.randn(2, B.shape[1], dtype=torch.float64)
    assert_close(kron_linear(x, A, left, right), x @ torch.kron(A, left @ right).T)


def test_the_golden_value():
    A, B = torch.tensor([[1.0, 2], [3, 4]]), torch.tensor([[0.0, 1], [1, 0]])
    built = kron_linear(torch.eye(4), A, B).T
    assert built.tolist() == [[0, 1, 0, 2], [1, 0, 2, 0], [0, 3, 0, 4], [3, 0, 4, 0]]


def test_krona_costs_1536_numbers_per_matrix_of_t5_base():
    config = T5Config(d_model=768, d_kv=64, num_heads=12, d_ff=3072, num_layers=12, vocab_size=32128)
    with unreal():
        adapter = sketch(config).attach("x", KronA(target_modules=("q", "v")))
        assert {sum(p.numel() for p in insert.parameters()) for _, insert in adapter.inserts} == {1536}
        assert adapter.count() == 110_592  # 36 attentions, q and v


@pytest.mark.parametrize(
    "method",
    [KronA(), LoKr(), LoKr(decompose_both=True), LoKr(r=512), LoHa()],
    ids=lambda method: str(method)[:24],
)
def test_no_tensor_of_out_times_in_is_built_in_forward_or_backward(method):
    width, inner, rows = 768, 1024, 3
    model = torch.nn.Sequential(torch.nn.Linear(width, inner))
    insert: Insert = method.build(Site("0", "linear", model))
    with torch.no_grad():
        for p in insert.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    x, y = torch.randn(rows, width, requires_grad=True), torch.zeros(rows, inner)
    with Largest() as largest:
        insert(x, y).square().sum().backward()
    assert x.grad.abs().sum() > 0 and all(p.grad.abs().sum() > 0 for p in insert.parameters())
    # LoHa's pairs: r² of each width.
    assert largest.seen <= max(rows * width * inner // 8, 64 * inner) and largest.seen < width * inner


@pytest.mark.parametrize("method", [LoHa(rank_dropout=0.5), LoKr(rank_dropout=0.5, rank_dropout_scale=True)])
def test_rank_dropout_leaves_out_whole_outputs_in_training_and_keeps_the_mean(method):
    torch.manual_seed(0)
    insert = method.build(Site("0", "linear", torch.nn.Sequential(torch.nn.Linear(64, 4096))))
    with torch.no_grad():
        for p in insert.parameters():
            p.add_(torch.randn_like(p) * 0.5)
    x, y = torch.randn(5, 64), torch.zeros(5, 4096)
    whole = insert.eval()(x, y)
    dropped = insert.train()(x, y)
    out = (dropped == 0).all(0)
    assert 0.45 < out.float().mean() < 0.55
    assert_close(dropped[:, ~out], whole[:, ~out] / (~out).float().mean())


def test_module_dropout_leaves_out_a_site_now_and_then():
    torch.manual_seed(0)
    insert = LoHa(module_dropout=0.5).build(Site("0", "linear", torch.nn.Sequential(torch.nn.Linear(8, 8))))
    with torch.no_grad():
        insert.w2_b.add_(1)
    x, y = torch.randn(2, 8), torch.zeros(2, 8)
    insert.train()
    whole = insert.eval()(x, y)
    insert.train()
    found = [insert(x, y) for _ in range(200)]
    silent = sum(bool((update == 0).all()) for update in found)
    assert 70 < silent < 130 and all(torch.equal(u, whole) for u in found if u.abs().sum() > 0)


def test_the_hadamard_gradient_is_the_true_one():
    torch.manual_seed(0)
    method = LoHa(r=2, alpha=3)
    insert = method.build(Site("0", "linear", torch.nn.Sequential(torch.nn.Linear(5, 4)))).double()
    names = [name for name, _ in insert.named_parameters()]
    x, y = (
        torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True),
        torch.zeros(2, 3, 4, dtype=torch.float64),
    )

    def run(x, *factors):
        return torch.func.functional_call(insert, dict(zip(names, factors, strict=True)), (x, y))

    factors = [torch.randn_like(p, requires_grad=True) for p in insert.parameters()]
    assert torch.autograd.gradcheck(run, (x, *factors))
