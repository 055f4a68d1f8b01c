"""Triton's kernels under its interpreter, on tensors of the processor, against torch.

The interpreter must be chosen before Triton is imported, so a process of its own runs the tests: the first
test starts it. Its conversion from fp32 to bf16 cuts the lower bits off, where a GPU rounds to the nearest
(`test_triton_compiled` looks for that instruction): oracles in bf16 are cut here too.
"""

import contextlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from graft import kernels
from graft.kernels import elementwise, gpu, groups, loss, native, reference
from graft.kernels.packed import Grouped, Nested, Packed
from graft.quant.dynamic import SIGNED, UNSIGNED
from graft.quant.scheme import CODEBOOKS
from graft.training.optimizers import AdamW, AdamW8bit

HERE = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NEAR = {torch.float32: 2e-6, torch.bfloat16: 2**-6, torch.float16: 2e-3}  # of the largest value

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
interpreted = pytest.mark.skipif(not HERE, reason="runs in the interpreter's process")


@pytest.mark.skipif(HERE, reason="is the interpreter's process")
def test_the_kernels_pass_under_the_interpreter():
    words = [sys.executable, "-m", "pytest", __file__, "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    done = subprocess.run(
        words, capture_output=True, text=True, env=os.environ | {"TRITON_INTERPRET": "1"}, timeout=600,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def packed(name, rows, columns, block):
    """Return a weight in one of the schemes."""
    weight = draw(rows, columns)
    if name == "int8":
        return Packed(*reference.quantise_int8(weight), None, block, columns)
    if name.startswith("int"):
        bits = int(name[3])
        return Grouped(*groups.quantise_groups(weight, bits, block), bits, block, columns)
    book = CODEBOOKS[name[:3]]
    codes, absmax = reference.quantise_4bit(weight, book, block)
    if not name.endswith("+nested"):
        return Packed(codes, absmax, book, block, columns)
    small = torch.randint(0, 256, absmax.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    nested = Nested(draw(-(-absmax.numel() // 256), seed=2).abs(), torch.tensor([0.3]), SIGNED)
    return Packed(codes, small, book, block, columns, nested)


@contextlib.contextmanager
def by_torch(monkeypatch):
    """Use no kernels of any kind."""
    with native.at_level("reference"), kernels.only_reference(), monkeypatch.context() as patch:
        patch.setattr(gpu, "usable", lambda *tensors: False)
        yield


def plain(weight):
    return groups.dequantise_groups if isinstance(weight, Grouped) else reference.dequantise


def found(operation, weight):
    return kernels.find(operation + "_groups" if isinstance(weight, Grouped) else operation, "cuda")


def as_interpreted(values, dtype):
    """Return fp32 values in `dtype`, converted as the interpreter does."""
    if dtype == torch.bfloat16:
        return (values.view(torch.int32) & -65536).view(torch.float32).bfloat16()
    return values.to(dtype)


def close(ours, exact, dtype):
    error = (ours.double() - exact).abs().max()
    assert error <= NEAR[dtype] * exact.abs().max().clamp(min=1), float(error)


SCHEMES = ["nf4", "fp4", "nf4+nested", "int8", "int2", "int4", "int8_"]
# Odd rows, rows that a block does not divide, whole blocks (decoded as one row), more than one program.
SHAPES = [(1, 1, 64), (5, 37, 32), (17, 64, 64), (7, 130, 64), (3, 256, 256)]


@interpreted
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_decoded_weights_have_the_bits_of_the_reference(scheme, shape):
    weight = packed(scheme, *shape)
    exact = plain(weight)(weight, torch.float32)
    for dtype in DTYPES:
        assert torch.equal(found("dequantise", weight)(weight, dtype), as_interpreted(exact, dtype))


@interpreted
def test_more_groups_than_one_share_an_absmax():
    weight = packed("nf4+nested", 300, 64, 32)
    assert len(weight.nested.absmax) > 1
    assert torch.equal(gpu.dequantise(weight, torch.float32), reference.dequantise(weight, torch.float32))


@interpreted
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    "m, dtype",
    [(0, DTYPES[0]), (1, DTYPES[0]), (1, DTYPES[1]), (16, DTYPES[1]), (5, DTYPES[2]), (19, DTYPES[0])],
)
def test_products_are_those_of_the_decoded_weight(scheme, m, dtype):
    for rows, columns, block in [(5, 37, 32), (33, 640, 64)]:
        weight = packed(scheme, rows, columns, block)
        exact = plain(weight)(weight, torch.float64)
        x, dy = draw(m, columns, seed=3).to(dtype), draw(m, rows, seed=4).to(dtype)
        bias = draw(rows, seed=5).to(dtype)
        y = found("linear", weight)(x[None], weight, bias)
        assert y.shape == (1, m, rows) and y.dtype == dtype
        dx = found("linear_backward", weight)(dy, weight)
        if m:
            close(y[0], x.double() @ exact.T + bias.double(), dtype)
            close(found("linear", weight)(x, weight, None), x.double() @ exact.T, dtype)
            close(dx, dy.double() @ exact, dtype)


@interpreted
def test_a_split_inner_dimension_gives_the_same_product(monkeypatch):
    from graft.kernels import triton_packed

    weight, bias = packed("nf4", 20, 1100, 64), draw(20, seed=2)
    monkeypatch.setattr(triton_packed, "multiprocessors", lambda device: 132)
    assert triton_packed.split(2, 9, 132) == 8
    exact = reference.dequantise(weight, torch.float64).T
    for m, dtype in [(1, torch.float32), (3, torch.float16)]:
        x = draw(m, 1100, seed=1).to(dtype)
        close(gpu.linear(x, weight, bias.to(dtype)), x.double() @ exact + bias, dtype)


@interpreted
def test_the_workspace_is_used_again_and_never_by_autograd():
    gpu.free_workspaces()
    small, large = packed("nf4", 8, 64, 64), packed("nf4", 32, 128, 64)
    for weight in (small, large, small):
        gpu.linear_backward(draw(20, len(weight.codes)), weight)
    (held,) = gpu._workspaces.values()
    assert held.numel() == 32 * 128 * 4
    x = draw(20, 64).requires_grad_()
    y = gpu.linear(x, small, None)
    gpu.linear(draw(20, 64), packed("fp4", 8, 64, 64), None)
    y.sum().backward()
    exact = reference.dequantise(small, torch.float32)
    assert torch.allclose(x.grad, exact.sum(0).expand(20, 64), atol=1e-5)


@interpreted
def test_what_the_kernels_do_not_know_is_left_to_the_reference():
    for weight in (packed("int3", 4, 40, 32), packed("nf4", 4, 40, 10), packed("nf4", 4, 40, 64)):
        dtype = torch.float64 if weight.block == 64 else torch.float32
        assert torch.equal(found("dequantise", weight)(weight, dtype), plain(weight)(weight, dtype))


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
