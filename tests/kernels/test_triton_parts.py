"""Triton's kernels of blocks, loss and optimizer under its interpreter, against torch."""

import pytest
import torch
from interpreted import DTYPES, by_torch, close, draw, interpreted, passes, starts_it
from torch.nn import functional as F

from graft.kernels import elementwise, gpu, loss, native
from graft.quant.dynamic import SIGNED, UNSIGNED
from graft.training.optimizers import AdamW, AdamW8bit


@starts_it
def test_the_kernels_of_blocks_loss_and_optimizer_pass_under_the_interpreter():
    passes(__file__)


def exact_norm(x, weight, bias, centred, plus):
    x = x.double()
    z = x - x.mean(-1, keepdim=True) if centred else x
    z = z * torch.rsqrt(z.pow(2).mean(-1, keepdim=True) + 1e-5) * (weight.double() + plus)
    return z if bias is None else z + bias.double()


@interpreted
@pytest.mark.parametrize("shape", [(1, 1), (3, 7, 37), (40, 64)])
@pytest.mark.parametrize(
    "centred, biased, plus", [(False, False, 0.0), (False, False, 1.0), (True, True, 0.0)]
)
def test_norms_and_their_gradients(shape, centred, biased, plus):
    x, weight = draw(*shape).requires_grad_(), draw(shape[-1], seed=1).requires_grad_()
    bias = draw(shape[-1], seed=2).requires_grad_() if biased else None
    dy, inputs = draw(*shape, seed=3), [t for t in (x, weight, bias) if t is not None]
    y = gpu.norm(x, weight, bias, eps=1e-5, centred=centred, plus=plus)
    exact = exact_norm(x, weight, bias, centred, plus)
    close(y, exact, torch.float32)
    theirs = torch.autograd.grad(exact, inputs, dy.double())
    for ours, gradient in zip(torch.autograd.grad(y, inputs, dy), theirs, strict=True):
        close(ours, gradient.double(), torch.float32)


@interpreted
def test_norms_of_16_bits_and_of_frozen_weights():
    for dtype in (torch.bfloat16, torch.float16):
        x, weight = draw(6, 48).to(dtype).requires_grad_(), draw(48, seed=1).to(dtype)
        y = gpu.norm(x, weight, None, eps=1e-5, centred=False, plus=0.0)
        close(y, exact_norm(x, weight, None, False, 0.0), dtype)
        assert torch.autograd.grad(y.sum(), x)[0].dtype == dtype
    assert not gpu.norms(torch.empty(1, 40000), torch.empty(40000), None)


ACTIVATIONS = {
    "silu": F.silu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu": F.gelu,
    "relu": F.relu,
}


@interpreted
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(1,), (5, 300), (0, 4)])
def test_gated_activations_and_their_gradients(name, shape):
    gate, up = (3 * draw(*shape)).requires_grad_(), draw(*shape, seed=1).requires_grad_()
    dy = draw(*shape, seed=2)
    y, exact = (
        gpu.gated(gate, up, elementwise.ACTIVATIONS.index(name)),
        ACTIVATIONS[name](gate.double()) * up.double(),
    )
    theirs = torch.autograd.grad(exact, (gate, up), dy.double())
    pairs = zip((y, *torch.autograd.grad(y, (gate, up), dy)), (exact, *theirs), strict=True)
    for ours, wanted in pairs:
        if ours.numel():
            close(ours, wanted.double(), torch.float32)


@interpreted
@pytest.mark.parametrize("tables", [1, 2])
def test_rotary_positions_and_their_gradients(tables):
    x = draw(2, 9, 3, 12).transpose(1, 2).requires_grad_()  # as a projection leaves it
    cos, sin = draw(2, tables, 9, 12, seed=1)
    first, second = x.chunk(2, -1)
    exact = x * cos[:, None] + torch.cat([-second, first], -1) * sin[:, None]
    y, dy = gpu.rotary(x, cos, sin), draw(2, 3, 9, 12, seed=2)
    assert y.transpose(1, 2).is_contiguous()
    close(y, exact.double(), torch.float32)
    (ours,), (theirs,) = torch.autograd.grad(y, x, dy), torch.autograd.grad(exact, x, dy)
    close(ours, theirs.double(), torch.float32)


@interpreted
@pytest.mark.parametrize("vocabulary", [7, 300, 5000])
@pytest.mark.parametrize("cap", [0.0, 5.0])
@pytest.mark.parametrize("wanted", [False, True])
def test_log_probabilities_and_the_gradient_in_their_place(vocabulary, cap, wanted):
    x = (3 * draw(6, vocabulary)).requires_grad_()
    labels = torch.randint(0, vocabulary, (6,), generator=torch.Generator().manual_seed(1))
    labels[0], labels[2] = x[0].argmax(), -100
    z = x.double() * 0.7
    z = cap * torch.tanh(z / cap) if cap else z
    live = labels != -100
    exact = z.log_softmax(-1).gather(1, labels.where(live, 0)[:, None])[:, 0].where(live, 0.0)
    logits, logprobs, hits = x.detach().clone(), torch.empty(6), torch.empty(6, dtype=torch.bool)
    gpu.token_logprobs(logits, labels, logprobs, hits, scale=0.7, cap=cap, wanted=wanted)
    close(logprobs, exact, torch.float32)
    assert torch.equal(hits, (z.argmax(-1) == labels) & live) and hits[0]
    if wanted:
        close(logits, torch.autograd.grad(exact.sum(), x)[0].double(), torch.float32)
    else:
        assert torch.equal(logits, x)


@interpreted
def test_a_label_that_is_no_column_gives_no_number():
    logprobs, hits = torch.empty(2), torch.empty(2, dtype=torch.bool)
    gpu.token_logprobs(draw(2, 9), torch.tensor([9, 3]), logprobs, hits, scale=1.0, cap=0.0, wanted=False)
    assert logprobs.isnan().tolist() == [True, False] and not hits[0]


@interpreted
@pytest.mark.parametrize("cls", [AdamW, AdamW8bit])
@pytest.mark.parametrize("dtype", DTYPES)
def test_adamw_updates_as_the_optimizer_does(cls, dtype, monkeypatch):
    theirs = torch.nn.Parameter(draw(70, 71).to(dtype))
    ours = theirs.detach().clone()
    optimizer = cls({"w": theirs}, [{"params": [theirs], "lr": 1e-2, "weight_decay": 0.1}])
    state = {key: tensor.clone() for _, held in optimizer.states.visit() for key, tensor in held.items()}
    for step in range(1, 5):
        gradient = draw(70, 71, seed=step).to(dtype)
        clip = 0.5 if step == 3 and dtype == torch.float32 else 1.0
        theirs.grad = gradient * clip
        with by_torch(monkeypatch):
            optimizer.step(1.0)
        gpu.adamw(
            ours, gradient, state, step, (1e-2, 0.1), optimizer.betas, optimizer.eps, clip, (SIGNED, UNSIGNED)
        )
        assert torch.equal(gradient, theirs.grad)
    close(ours, theirs.double(), torch.float32)
    (wanted,) = [held for _, held in optimizer.states.visit()]
    for key, tensor in state.items():
        if tensor.dtype == torch.uint8:  # a moment beside a midpoint may fall to either side
            apart = (tensor.int() - wanted[key].int()).abs()
            assert apart.max() <= 1 and apart.count_nonzero() <= 5
        elif tensor.dtype == torch.float32:
            close(tensor, wanted[key].double(), torch.float32)
    if "low" in state:
        from graft.training.master import joined

        close(joined(ours, state["low"]), joined(theirs, wanted["low"]).double(), torch.float32)


@interpreted
def test_a_moment_that_is_no_number_shows_in_its_scale():
    parameter, gradient = torch.zeros(600), draw(600)
    gradient[300] = float("nan")
    state = {key: torch.zeros(600, dtype=torch.uint8) for key in "mv"}
    state["m"].fill_(SIGNED.values.index(0.0))
    state |= {f"{key}_absmax": torch.zeros(3) for key in "mv"}
    gpu.adamw(parameter, gradient, state, 1, (1e-2, 0.0), (0.9, 0.999), 1e-8, 1.0, (SIGNED, UNSIGNED))
    assert state["m_absmax"].isnan().tolist() == [False, True, False]
    assert parameter[:256].isfinite().all()


@interpreted
def test_a_block_and_the_loss_and_the_optimizer_take_these_kernels(monkeypatch):
    """With the C kernels switched off, tensors that Triton serves go to Triton, forward and backward."""
    x, weight = draw(6, 48).requires_grad_(), draw(48, seed=1)
    head, labels = loss.Head(draw(90, 48, seed=2), draw(90, seed=3), scale=0.5, cap=8.0), torch.arange(6)
    table = draw(2, 1, 6, 8, seed=4)

    def work():
        z = elementwise.norm(x, weight, eps=1e-5, plus=1.0)
        z = elementwise.gated(z, x, "gelu_tanh")
        turned = elementwise.rotary(z.view(1, 6, 6, 8).transpose(1, 2), *table)
        logprobs, _ = loss.token_logprobs(turned.transpose(1, 2).reshape(6, 48), head, labels)
        parameter = torch.nn.Parameter(draw(80, 80))
        parameter.grad = draw(80, 80, seed=5)
        AdamW8bit({"w": parameter}, [{"params": [parameter], "lr": 1e-2}]).step(1.0, 0.5)
        return logprobs, *torch.autograd.grad(logprobs.sum(), x), parameter, parameter.grad

    with by_torch(monkeypatch):
        wanted = work()
    called = []
    for name in ("norm", "gated", "rotary", "token_logprobs", "adamw"):
        kernel = getattr(gpu, name)
        watched = lambda *given, kernel=kernel, name=name, **words: (
            called.append(name) or kernel(*given, **words)
        )
        monkeypatch.setattr(gpu, name, watched)
    with native.at_level("reference"):
        found = work()
    assert called == ["norm", "gated", "rotary", "token_logprobs", "adamw"]
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
