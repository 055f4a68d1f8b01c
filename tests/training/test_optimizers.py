import pytest
import torch

from graft.errors import UsageError
from graft.training import optimizers
from graft.training.master import joined, split_
from graft.training.optimizers import AdamW, AdamW8bit, build
from graft.training.paging import Pages

SHAPES = {"W": (64, 80), "b": (80,), "small": (3, 5), "odd": (4099,)}


def parameters(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
        for name, shape in SHAPES.items()
    }


def groups(named, lr=1e-2, weight_decay=0.1):
    first, *rest = named.values()
    return [
        {"params": [first], "lr": lr, "weight_decay": weight_decay},
        {"params": rest, "lr": 2 * lr, "weight_decay": 0.0},
    ]


def give_gradients(step, *sets):
    generator = torch.Generator().manual_seed(100 + step)
    for name, shape in SHAPES.items():
        gradient = torch.randn(shape, generator=generator) * 10.0 ** (step % 5 - 2)
        for named in sets:
            named[name].grad = gradient.to(named[name].dtype, copy=True)


def test_fifty_steps_equal_torch_adamw():
    ours, theirs = parameters(), parameters()
    optimizer = AdamW(ours, groups(ours), betas=(0.8, 0.95), eps=1e-6)
    oracle = torch.optim.AdamW(groups(theirs), betas=(0.8, 0.95), eps=1e-6)
    for step in range(50):
        give_gradients(step, ours, theirs)
        optimizer.step(1.0)
        oracle.step()
    for name in SHAPES:  # the last two bits of fp32
        torch.testing.assert_close(ours[name], theirs[name], rtol=2.5e-7, atol=1e-7)


def test_the_factor_multiplies_every_groups_rate():
    ours, theirs = parameters(), parameters()
    optimizer, oracle = AdamW(ours, groups(ours)), torch.optim.AdamW(groups(theirs, lr=0.25e-2), eps=1e-8)
    give_gradients(0, ours, theirs)
    optimizer.step(0.25)
    oracle.step()
    torch.testing.assert_close(ours["W"], theirs["W"], rtol=1.3e-7, atol=1e-7)


def test_a_tensor_without_gradient_stays_and_its_bias_correction_waits():
    ours, theirs = parameters(), parameters()
    optimizer, oracle = AdamW(ours, groups(ours)), torch.optim.AdamW(groups(theirs))
    for step in range(4):
        give_gradients(step, ours, theirs)
        if step < 2:
            ours["b"].grad = theirs["b"].grad = None
        optimizer.step(1.0)
        oracle.step()
    torch.testing.assert_close(ours["b"], theirs["b"], rtol=0, atol=1e-7)


def test_eight_bit_steps_from_the_same_states_equal_bitsandbytes():
    optim = pytest.importorskip("bitsandbytes.optim")
    ours, theirs = parameters(), parameters()
    optimizer, oracle = AdamW8bit(ours, groups(ours)), optim.AdamW8bit(groups(theirs))
    names = {"m": "state1", "v": "state2", "m_absmax": "absmax1", "v_absmax": "absmax2"}
    for step in range(20):
        give_gradients(step, ours, theirs)
        optimizer.step(1.0)
        oracle.step()
        for name in SHAPES:
            torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-6)
        for name, state in optimizer.states.visit():
            for key, tensor in state.items():
                other = oracle.state[theirs[name]][names[key]].view(tensor.shape)
                if tensor.dtype == torch.uint8:
                    # Its CPU path looks codes up in a table of 65,536: a value at a boundary goes next door.
                    assert (tensor != other).float().mean() < 0.05  # most of them tiny second moments
                else:
                    torch.testing.assert_close(tensor, other, rtol=1e-6, atol=1e-6 * float(other.abs().max()))
                tensor.copy_(other)
            ours[name].data.copy_(theirs[name].data)


def test_eight_bit_states_take_two_bytes_and_small_tensors_stay_in_fp32():
    named = parameters()
    states = AdamW8bit(named, groups(named)).tensors()
    assert states["W.m"].dtype == states["W.v"].dtype == torch.uint8
    assert states["W.m_absmax"].numel() == 64 * 80 // 256 and states["odd.v_absmax"].numel() == 17
    assert states["b.m"].dtype == states["small.v"].dtype == torch.float32


def test_bf16_parameters_follow_an_fp32_master_so_that_small_steps_are_not_lost():
    named, oracle = {"W": torch.nn.Parameter(torch.ones(64, dtype=torch.bfloat16))}, torch.ones(64)
    optimizer = AdamW(named, [{"params": [named["W"]], "lr": 1e-4}])
    for _ in range(100):  # 1e-4 is far under the spacing of bf16 at 1, which is 2⁻⁷
        named["W"].grad = torch.ones(64, dtype=torch.bfloat16)
        optimizer.step(1.0)
        oracle -= 1e-4
    master = joined(named["W"].detach(), optimizer.tensors()["W.low"])
    torch.testing.assert_close(master, oracle, rtol=0, atol=1e-6)
    assert torch.equal(named["W"].detach(), oracle.bfloat16())


def test_a_master_in_two_halves_is_the_master():
    generator = torch.Generator().manual_seed(0)
    master = torch.randn(100_000, generator=generator) * 10 ** torch.randint(-30, 30, (100_000,)).float()
    master[:4] = torch.tensor([0.0, -0.0, 1e-42, -3e38])
    master = master[(master.view(torch.int32) & 0xFFFF) != 0x8000]  # ties have a test of their own
    parameter = torch.empty_like(master, dtype=torch.bfloat16)
    low = torch.empty_like(master, dtype=torch.int16)
    split_(master, parameter, low)
    assert torch.equal(parameter, master.bfloat16()) and torch.equal(joined(parameter, low), master)


def test_a_tie_that_was_rounded_down_loses_one_step_of_the_master():
    tie = torch.tensor([0x3F808000, 0x3F818000], dtype=torch.int32).view(torch.float32)  # to even: down, up
    parameter, low = torch.empty(2, dtype=torch.bfloat16), torch.empty(2, dtype=torch.int16)
    split_(tie, parameter, low)
    assert (tie.view(torch.int32) - joined(parameter, low).view(torch.int32)).tolist() == [1, 0]


@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_large_tensors_in_pieces_are_updated_to_the_same_bits(kind, dtype, monkeypatch):
    whole, cut = parameters(dtype=dtype), parameters(dtype=dtype)
    first = build(kind, whole, groups(whole), Pages())
    second = build(kind, cut, groups(cut), Pages())
    for step in range(3):
        give_gradients(step, whole, cut)
        first.step(1.0)
        with monkeypatch.context() as patch:
            patch.setattr(optimizers, "PIECE", 512)
            second.step(1.0)
    assert all(torch.equal(whole[name], cut[name]) for name in SHAPES)
    assert all(torch.equal(tensor, second.tensors()[name]) for name, tensor in first.tensors().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit"])
@pytest.mark.parametrize("budget", [0, 15_000])
def test_paged_states_give_the_same_bits(kind, dtype, budget, tmp_path):
    plain, paged = parameters(dtype=dtype), parameters(dtype=dtype)
    first = build(kind, plain, groups(plain), Pages(0, tmp_path))
    second = build(f"paged_{kind}", paged, groups(paged), Pages(budget, tmp_path, slab_bytes=10_000))
    assert first.states.paged_bytes == 0 and second.states.paged_bytes > 0
    assert 0 <= second.states.resident_bytes <= budget
    for step in range(5):
        give_gradients(step, plain, paged)
        first.step(1.0)
        second.step(1.0)
    assert all(torch.equal(plain[name], paged[name]) for name in SHAPES)
    assert all(torch.equal(tensor, second.tensors()[name]) for name, tensor in first.tensors().items())


def test_paged_files_have_no_name_to_be_left_behind(tmp_path):
    named = parameters()
    optimizer = build("paged_adamw", named, groups(named), Pages(0, tmp_path))
    assert optimizer.states.paged_bytes and not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit", "paged_adamw_8bit"])
def test_loaded_states_go_on_with_the_same_bits(kind, tmp_path):
    named = parameters(dtype=torch.bfloat16)
    optimizer = build(kind, named, groups(named), Pages(0, tmp_path))
    give_gradients(0, named)
    optimizer.step(1.0)
    copies = {name: torch.nn.Parameter(p.detach().clone()) for name, p in named.items()}
    resumed = build(kind, copies, groups(copies), Pages(0, tmp_path))
    resumed.load({name: tensor.clone() for name, tensor in optimizer.tensors().items()})
    for step in (1, 2):
        give_gradients(step, named, copies)
        optimizer.step(0.5)
        resumed.step(0.5)
    assert all(torch.equal(named[name], copies[name]) for name in SHAPES)


def test_an_unknown_optimizer_names_the_nearest():
    with pytest.raises(UsageError, match="adamw_8bit"):
        build("adam_8bit", {}, [], Pages())
