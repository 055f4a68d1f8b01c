"""Log-probabilities of tokens at every level of the kernels, against torch on full logits in fp64."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.testing import assert_close

from graft.kernels import loss, native
from graft.kernels.loss import Head, token_logprobs

LEVELS = ("reference", *native.levels())
SIZES = [(1, 3, 7), (131, 37, 7), (50, 70, 1003), (19, 16, 32003)]  # rows, width, vocabulary
BEHIND = [(1.0, 0.0), (0.5, 0.0), (1.0, 2.0), (3.0, 30.0)]  # scale, cap


@pytest.fixture(params=LEVELS, autouse=True)
def level(request):
    with native.at_level(request.param):
        yield request.param


def case(rows, width, vocabulary, dtype=torch.float32, bias=True):
    """Hidden states, a head and labels, of which the middle one is ignored."""
    generator = torch.Generator().manual_seed(rows + vocabulary)
    hidden, weight, shift = (
        torch.randn(shape, generator=generator).to(dtype)
        for shape in ((rows, width), (vocabulary, width), (vocabulary,))
    )
    labels = torch.randint(0, vocabulary, (rows,), generator=generator)
    if rows > 1:
        labels[rows // 2] = -100
    return hidden.requires_grad_(), Head(weight, shift if bias else None), labels


def by_torch(hidden, head, labels, sent):
    """Log-probabilities, hits and the gradient of the states, from full logits in fp64."""
    states = hidden.detach().double().requires_grad_()
    bias = None if head.bias is None else head.bias.double()
    z = F.linear(states, head.weight.double(), bias) * head.scale
    z = head.cap * torch.tanh(z / head.cap) if head.cap else z
    logprobs = -F.cross_entropy(z, labels, reduction="none")
    (gradient,) = torch.autograd.grad(logprobs, states, sent.double())
    return logprobs, z.argmax(-1) == labels, gradient


def check(hidden, head, labels, atol, gradient_error):
    sent = torch.linspace(-1, 2, len(hidden))
    logprobs, hits = token_logprobs(hidden, head, labels)
    (gradient,) = torch.autograd.grad(logprobs, hidden, sent)
    expected, right, slope = by_torch(hidden, head, labels, sent)
    assert_close(logprobs.double(), expected, rtol=0, atol=atol)
    assert_close(gradient.double(), slope, rtol=0, atol=gradient_error * float(slope.abs().max()))
    assert gradient.dtype == hidden.dtype
    return hits, right


@pytest.mark.parametrize(("scale", "cap"), BEHIND)
@pytest.mark.parametrize("sizes", SIZES)
def test_values_and_gradients_are_those_of_full_logits(sizes, scale, cap):
    hidden, head, labels = case(*sizes, bias=scale == 1)
    hits, right = check(hidden, head._replace(scale=scale, cap=cap), labels, 3e-5, 3e-5)
    assert torch.equal(hits, right)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_in_fp32_and_rounds_only_what_it_returns(dtype, level):
    hidden, head, labels = case(50, 70, 1003, dtype)
    exact = not native.by_torch(dtype) and level != "reference"  # torch rounds the logits themselves
    eps = torch.finfo(dtype).eps
    check(hidden, head, labels, 3e-5 if exact else 16 * eps, 2 * eps)


def test_fp64_is_computed_in_fp64():
    hidden, head, labels = case(5, 8, 11, torch.float64)
    logprobs, _ = token_logprobs(hidden, head, labels)
    assert_close(
        logprobs, -F.cross_entropy(F.linear(hidden, *head[:2]), labels, reduction="none"), rtol=0, atol=1e-12
    )
    assert torch.autograd.gradcheck(lambda h: token_logprobs(h, head, labels)[0], hidden)


def test_rows_in_chunks_are_the_same_rows(monkeypatch):
    hidden, head, labels = case(131, 37, 1003)
    whole, _ = token_logprobs(hidden, head, labels)
    (one,) = torch.autograd.grad(whole.sum(), hidden)
    monkeypatch.setattr(loss, "LOGITS", 1)
    monkeypatch.setattr(loss, "FEWEST", 24)
    assert loss.chunk_rows(131, 1003) == 24
    cut, _ = token_logprobs(hidden, head, labels)
    (other,) = torch.autograd.grad(cut.sum(), hidden)
    assert_close(cut, whole, rtol=1e-6, atol=2e-6)
    assert_close(other, one, rtol=0, atol=1e-5)


def test_the_number_of_threads_changes_no_bit():
    hidden, head, labels = case(50, 70, 1003)
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            logprobs, _ = token_logprobs(hidden, head, labels)
            results.append((logprobs.detach(), *torch.autograd.grad(logprobs.sum(), hidden)))
    finally:
        torch.set_num_threads(before)
    if native.level() != "reference":
        assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_slices_and_misaligned_states_are_read_where_they_lie():
    hidden, head, labels = case(20, 37, 103)
    wide = torch.zeros(20, 41)
    wide[:, 3:40] = hidden.detach()
    expected, _ = token_logprobs(hidden, head, labels)
    found, _ = token_logprobs(wide[:, 3:40], head, torch.stack([labels, labels], dim=1)[:, 0])
    assert torch.equal(expected, found)


def test_no_rows_and_rows_without_labels():
    hidden, head, labels = case(6, 5, 9)
    logprobs, hits = token_logprobs(hidden[:0], head, labels[:0])
    assert logprobs.shape == hits.shape == (0,)
    logprobs, hits = token_logprobs(hidden, head, torch.full_like(labels, -100))
    (gradient,) = torch.autograd.grad(logprobs.sum(), hidden)
    assert not logprobs.any() and not hits.any() and not gradient.any()


def test_of_equal_logits_the_first_is_the_prediction():
    head = Head(torch.zeros(40, 4))
    _, hits = token_logprobs(torch.ones(2, 4), head, torch.tensor([0, 39]))
    assert hits.tolist() == [True, False]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_seen_in_its_row_only(bad):
    hidden, head, labels = case(4, 5, 33)
    labels[:] = 3
    with torch.no_grad():
        hidden[1, 2] = bad
    logprobs, _ = token_logprobs(hidden, head, labels)
    assert logprobs.isfinite().tolist() == [True, False, True, True]


def test_large_logits_do_not_overflow():
    head = Head(torch.eye(3) * 1e4)
    logprobs, _ = token_logprobs(torch.eye(3), head, torch.tensor([0, 0, 2]))
    assert logprobs.tolist() == [0.0, -1e4, 0.0]


def test_a_label_that_is_no_row_of_the_head_is_an_error():
    hidden, head, _ = case(2, 5, 9)
    with pytest.raises((IndexError, RuntimeError)):
        token_logprobs(hidden, head, torch.tensor([0, 9]))


def test_fake_tensors_of_a_planner_get_the_shapes():
    with FakeTensorMode():
        hidden, head, labels = (
            torch.empty(130, 8, requires_grad=True),
            Head(torch.empty(11, 8)),
            torch.zeros(130).long(),
        )
        logprobs, hits = token_logprobs(hidden, head, labels)
        logprobs.sum().backward()
        assert logprobs.shape == hits.shape == (130,) and hidden.grad.shape == (130, 8)


def test_bf16_products_of_torch_serve_where_they_are_faster(monkeypatch):
    monkeypatch.setattr(native, "by_torch", lambda dtype: dtype == torch.bfloat16)
    hidden, head, labels = case(50, 70, 103, torch.bfloat16)
    check(hidden, head, labels, 0.2, 0.02)  # logits near 20 in bf16 are 0.06 apart
