"""One call for all tensors: torch's AdamW, and the states of our own definition."""

import math

import pytest
import torch
from torch.testing import assert_close

from graft.kernels import native
from graft.kernels.optimizer import gradient_norm
from graft.quant.dynamic import SIGNED, UNSIGNED, dequantise_state, quantise_state
from graft.training.master import joined
from graft.training.optimizers import AdamW8bit, build
from graft.training.paging import Pages

SHAPES = {
    "W": (64, 80),
    "block": (4096,),
    "odd": (5003,),
    "small": (3,),
    "tasks": (8192 * 2 + 7,),
    "none": (0, 4),
}

pytestmark = pytest.mark.skipif(not native.levels(), reason="the library of kernels is not built")
of_every_level = pytest.mark.parametrize("level", native.levels())


def parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
        for name, shape in SHAPES.items()
    }


def give_gradients(named, step):
    generator = torch.Generator().manual_seed(100 + step)
    for p in named.values():
        p.grad = (torch.randn(p.shape, generator=generator) * 10.0 ** (step % 5 - 2)).to(p.dtype)


def trained(level, kind="adamw", dtype=torch.float32, steps=20, clip=1.0, **constants):
    """Parameters after some steps, and the optimizer."""
    named = parameters(dtype)
    optimizer = build(kind, named, groups(named), Pages(), **constants)
    with native.at_level(level):
        for step in range(steps):
            give_gradients(named, step)
            optimizer.step(1.0, clip)
    return named, optimizer


def groups(named):
    first, *rest = named.values()
    return [
        {"params": [first], "lr": 1e-2, "weight_decay": 0.1},
        {"params": rest, "lr": 3e-3, "weight_decay": 0.0},
    ]


@of_every_level
def test_twenty_steps_are_those_of_torchs_fused_adamw(level):
    ours, _ = trained(level)
    theirs = parameters()
    oracle = torch.optim.AdamW(groups(theirs), fused=True)
    for step in range(20):
        give_gradients(theirs, step)
        oracle.step()
    for name in SHAPES:
        assert_close(ours[name], theirs[name], rtol=5e-7, atol=5e-7)


@of_every_level
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit"])
def test_a_step_from_the_same_states_is_that_of_torch(kind, dtype, level):
    eps = 2.0**-23 if dtype == torch.float32 else torch.finfo(dtype).eps
    ours, theirs = parameters(dtype), parameters(dtype)
    one, other = (build(kind, named, groups(named), Pages()) for named in (ours, theirs))
    for step in range(10):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        with native.at_level(level):
            one.step(0.7, 0.4)
        with native.at_level("reference"):
            other.step(0.7, 0.4)
        before = other.tensors()
        for name in SHAPES:
            assert_close(ours[name], theirs[name], rtol=2 * eps, atol=1e-7)
            assert torch.equal(ours[name].grad, theirs[name].grad)
            if dtype == torch.bfloat16:
                masters = [
                    joined(of[name].detach(), o.tensors()[f"{name}.low"])
                    for of, o in ((ours, one), (theirs, other))
                ]
                assert_close(*masters, rtol=1e-6, atol=1e-6)
            ours[name].data.copy_(theirs[name].data)
        for name, found in one.tensors().items():
            check_state(name, found, before[name])
        one.load({name: tensor.clone() for name, tensor in before.items()})


def check_state(name, found, expected):
    if found.dtype == torch.uint8:  # a midpoint, which ratios of bf16 often are, may go to either side
        apart = (found.int() - expected.int()).abs()
        assert apart.max() <= 1 and (apart > 0).float().mean() < 5e-3
    elif expected.numel() and not name.endswith(".low"):  # near 0 the terms of a sum have cancelled
        assert_close(found, expected, rtol=1e-6, atol=3e-7 * float(expected.abs().max()))


@of_every_level
@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e20])
def test_codes_are_those_of_the_nearest_levels(level, scale):
    generator = torch.Generator().manual_seed(1)
    g = torch.randn(1 << 15, generator=generator) * 10 ** (torch.rand(1 << 15, generator=generator) * 9 - 8)
    g[:512:2] = 0
    g[::256] = 1.0
    levels = torch.tensor(SIGNED.values)[1:]
    g[1024:1279] = levels
    g *= scale if scale < 1e19 else 1.0
    named = {"g": torch.nn.Parameter(torch.zeros_like(g))}
    optimizer = AdamW8bit(named, [{"params": [named["g"]], "lr": 0.0}], betas=(0.0, 0.0))
    named["g"].grad = g
    with native.at_level(level):
        optimizer.step(1.0)  # m = g, v = g²
    for key, moment, signed in (("m", g, True), ("v", g * g, False)):
        codes, absmax = quantise_state(moment, signed)
        state = optimizer.tensors()
        assert_close(state[f"g.{key}_absmax"], absmax.where(absmax > 1.2e-38, 0), rtol=2e-7, atol=1.2e-38)
        if absmax.min() > 1e-37:
            apart = (state[f"g.{key}"].int() - codes.int()).abs()
            assert apart.max() <= 1 and apart.sum() <= 3


def test_a_level_is_its_own_nearest():
    for book, signed in ((SIGNED, True), (UNSIGNED, False)):
        x = torch.tensor(book.values)
        codes, absmax = quantise_state(x, signed)
        assert torch.equal(codes, torch.arange(256, dtype=torch.uint8))
        assert torch.equal(dequantise_state(codes, absmax, signed), x)


@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit"])
def test_the_number_of_threads_changes_no_bit(kind):
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            named, optimizer = trained(native.levels()[-1], kind, steps=3)
            results.append((*named.values(), *optimizer.tensors().values()))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@of_every_level
def test_a_saved_state_goes_on_at_another_level(level):
    named, optimizer = trained("reference", "adamw_8bit", steps=2)
    copies = parameters()
    for name, p in copies.items():
        p.data.copy_(named[name].data)
    resumed = build("adamw_8bit", copies, groups(copies), Pages())
    resumed.load({name: tensor.clone() for name, tensor in optimizer.tensors().items()})
    give_gradients(named, 2)
    give_gradients(copies, 2)
    with native.at_level("reference"):
        optimizer.step(1.0)
    with native.at_level(level):
        resumed.step(1.0)
    for name in SHAPES:
        assert_close(copies[name], named[name], rtol=3e-7, atol=1e-7)


@of_every_level
def test_slices_views_and_gradients_in_another_order_are_updated(level):
    storage = torch.randn(200, generator=torch.Generator().manual_seed(0))
    named = {
        "misaligned": torch.nn.Parameter(storage.clone()[1:38]),
        "turned": torch.nn.Parameter(storage.clone()[:48].view(6, 8).T),  # not contiguous: left to torch
        "plain": torch.nn.Parameter(storage.clone()[:48].view(8, 6)),
        "double": torch.nn.Parameter(storage[:5].double()),
    }
    copies = {name: torch.nn.Parameter(p.detach().clone().contiguous()) for name, p in named.items()}
    generator = torch.Generator().manual_seed(1)
    for name, p in named.items():
        gradient = torch.randn(p.shape[::-1], generator=generator, dtype=p.dtype).T
        p.grad, copies[name].grad = gradient, gradient.clone(memory_format=torch.contiguous_format)
    optimizer = build("adamw", named, [{"params": list(named.values()), "lr": 1e-2}], Pages())
    oracle = torch.optim.AdamW(copies.values(), lr=1e-2, weight_decay=0)
    with native.at_level(level):
        optimizer.step(1.0)
    oracle.step()
    for name, p in named.items():
        assert_close(p, copies[name], rtol=3e-7, atol=1e-7)


@of_every_level
def test_a_parameter_that_moved_is_found_again(level):
    named = {"p": torch.nn.Parameter(torch.ones(300))}
    optimizer = build("adamw", named, [{"params": [named["p"]], "lr": 1e-2}], Pages())
    with native.at_level(level):
        for _ in range(2):
            named["p"].grad = torch.ones(300)
            optimizer.step(1.0)
            named["p"].data = named["p"].data.clone()
    assert_close(named["p"].detach(), torch.full((300,), 0.98), rtol=0, atol=1e-6)


@of_every_level
def test_moments_below_the_smallest_normal_number_become_zero(level):
    named = {"p": torch.nn.Parameter(torch.ones(100))}
    optimizer = build("adamw", named, [{"params": [named["p"]], "lr": 1e-2}], Pages())
    for tensor in optimizer.tensors().values():
        if tensor.is_floating_point():
            tensor.fill_(1e-40)
    named["p"].grad = torch.zeros(100)
    with native.at_level(level):
        optimizer.step(1.0)
    assert torch.tensor(1e-40) != 0  # outside of the kernel such numbers are as they were
    assert not optimizer.tensors()["p.m"].any() and torch.equal(named["p"].detach(), torch.ones(100))


@of_every_level
def test_a_gradient_that_is_not_a_number_shows_in_its_blocks_scale(level):
    named, optimizer = trained(level, "adamw_8bit", steps=1)
    give_gradients(named, 1)
    named["block"].grad[300] = math.nan
    with native.at_level(level):
        optimizer.step(1.0)
    absmax = optimizer.tensors()["block.m_absmax"]
    assert absmax.isnan().nonzero().flatten().tolist() == [1]


@of_every_level
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_norm_of_all_gradients_is_that_of_fp64(level, dtype):
    named = parameters(dtype)
    give_gradients(named, 2)
    gradients = [p.grad for p in named.values()] + [named["W"].grad.T]
    expected = torch.cat([g.double().flatten() for g in gradients]).norm()
    with native.at_level(level):
        found = gradient_norm(gradients)
        assert math.isclose(found, float(expected), rel_tol=1e-6)
        gradients[2] = torch.full((5,), math.nan, dtype=dtype)
        assert math.isnan(gradient_norm(gradients))


def test_the_norm_of_mixed_and_of_double_gradients_is_left_to_torch():
    assert gradient_norm([torch.tensor([3.0]), torch.tensor([4.0], dtype=torch.float64)]) == 5.0
