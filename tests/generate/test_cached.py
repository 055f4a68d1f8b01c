"""The generic stepper: slots that are cut, copied, moved and made room for. Oracle: whole forwards."""

import pytest
import torch

from graft.generate.cached import CachedStepper
from graft.generate.fits import fits
from graft.methods.lora import LoRA
from graft.methods.prefix import PrefixTuning
from graft.methods.prompt import PromptTuning
from models import randomise, tiny_base

A, B = list(range(5, 25)), list(range(30, 37))


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def whole(base, ids, name=None):
    """Return the logits after the last token of a text."""
    return base(torch.tensor([ids]), adapters=[name], use_cache=False).logits[0, -1]


def check(base, logits, *texts, names=None):
    for row, ids in enumerate(texts):
        torch.testing.assert_close(
            logits[row], whole(base, ids, names[row] if names else None), atol=2e-5, rtol=0
        )


def opened(base, *names, length=40):
    stepper = CachedStepper(base)
    stepper.reserve(len(names), length)
    for slot, name in enumerate(names):
        stepper.open(slot, name)
    return stepper


def test_pieces_of_prompts_are_read_beside_new_ones():
    base = tiny_base()
    stepper = opened(base, None, None, None)
    check(base, stepper.prefill([(0, A[:9])]), A[:9])
    check(base, stepper.prefill([(0, A[9:12]), (1, B)]), A[:12], B)
    check(base, stepper.prefill([(0, A[12:20]), (1, [9]), (2, A[:3])]), A, [*B, 9], A[:3])
    check(base, stepper.decode([2, 0, 1], torch.tensor([7, 8, 9])), [*A[:3], 7], [*A, 8], [*B, 9, 9])


def test_a_slot_is_cut_and_read_on():
    base = tiny_base()
    stepper = opened(base, None, None)
    stepper.prefill([(0, A), (1, B)])
    stepper.decode([0, 1], torch.tensor([7, 8]))
    stepper.truncate(0, 11)
    check(base, stepper.prefill([(0, [40, 41])]), [*A[:11], 40, 41])
    check(base, stepper.decode([0, 1], torch.tensor([3, 4])), [*A[:11], 40, 41, 3], [*B, 8, 4])


@pytest.mark.parametrize("name", [None, "lora", "prompt", "prefix"])
def test_a_prefix_is_copied_while_its_source_is_being_written(name):
    base = tiny_base()
    for other, method in (
        ("lora", LoRA(r=2)),
        ("prompt", PromptTuning(num_virtual_tokens=3)),
        ("prefix", PrefixTuning(num_virtual_tokens=2)),
    ):
        randomise(base.attach(other, method))
    stepper = opened(base, name, name)
    stepper.prefill([(0, A)])
    stepper.decode([0], torch.tensor([7]))
    stepper.copy_prefix(0, 1, 12)
    check(base, stepper.prefill([(1, B)]), [*A[:12], *B], names=[name])
    logits = stepper.decode([0, 1], torch.tensor([8, 9]))
    check(base, logits, [*A, 7, 8], [*A[:12], *B, 9], names=[name, name])


def test_room_is_made_and_given_back_while_texts_are_being_written():
    base = tiny_base()
    stepper = opened(base, None, None, length=24)
    stepper.prefill([(0, A), (1, B)])
    stepper.decode([0, 1], torch.tensor([7, 8]))
    stepper.reserve(3, 50)
    assert stepper.table.size == 150
    stepper.open(2, None)
    stepper.prefill([(2, [*A, *A])])
    logits = stepper.decode([0, 1, 2], torch.tensor([1, 2, 3]))
    check(base, logits, [*A, 7, 1], [*B, 8, 2], [*A, *A, 3])
    stepper.free(2), stepper.free(0)
    stepper.reserve(1, 12)
    assert stepper.table.size == 12
    for step in range(3):
        logits = stepper.decode([1], torch.tensor([step]))
    check(base, logits, [*B, 8, 2, 0, 1, 2])


def test_rows_slide_to_the_left_when_the_last_column_is_full():
    base = tiny_base()
    stepper = opened(base, None, None, length=21)
    stepper.prefill([(0, A), (1, B)])
    stepper.decode([0, 1], torch.tensor([7, 8]))
    stepper.free(0)
    for step in range(6):
        logits = stepper.decode([1], torch.tensor([step]))
    check(base, logits, [*B, 8, *range(6)])


def test_rows_that_may_not_mix_are_run_apart(monkeypatch):
    base = tiny_base()
    for seed, name in enumerate("ab"):
        randomise(base.attach(name, LoRA(r=2)), seed)
    monkeypatch.setattr(base, "together", lambda names: len(set(names)) == 1)
    sizes = []
    base.model.model.embed_tokens.register_forward_hook(lambda m, args, out: sizes.append(len(out)))
    stepper = opened(base, "b", "a", "a")
    check(base, stepper.prefill([(0, A), (1, B), (2, B)]), A, B, B, names=["b", "a", "a"])
    sizes.clear()
    logits = stepper.decode([1, 2, 0], torch.tensor([7, 8, 9]))
    assert sizes == [2, 1]
    check(base, logits, [*B, 7], [*B, 8], [*A, 9], names=["a", "a", "b"])


def test_an_earlier_text_that_was_not_finite_spoils_no_later_one():
    base = tiny_base()
    stepper = opened(base, None, None)
    stepper.prefill([(0, A), (1, A)])
    for layer in stepper.table.layers:
        layer.values[:] = float("nan")
    stepper.free(0), stepper.free(1)
    stepper.open(0, None), stepper.open(1, None)
    stepper.prefill([(0, B)])
    stepper.prefill([(1, A)])
    check(base, stepper.decode([0, 1], torch.tensor([7, 8])), [*B, 7], [*A, 8])


@pytest.mark.parametrize("kind", ["eager", "sdpa"])
def test_both_kinds_of_attention_take_the_mask(kind):
    base = tiny_base("qwen2")
    base.model.set_attn_implementation(kind)
    randomise(base.attach("prefix", PrefixTuning(num_virtual_tokens=2)))
    stepper = opened(base, None, "prefix")
    stepper.prefill([(0, A), (1, B)])
    logits = stepper.decode([0, 1], torch.tensor([7, 8]))
    check(base, logits, [*A, 7], [*B, 8], names=[None, "prefix"])


def test_a_model_is_tried_once_and_torchs_generator_stays():
    base, calls = tiny_base(), []
    base.model.register_forward_pre_hook(lambda m, args: calls.append(1))
    before = torch.get_rng_state()
    assert fits(base) and calls
    count = len(calls)
    assert fits(base) and len(calls) == count and torch.equal(torch.get_rng_state(), before)


def test_a_model_in_16_bits_fits(monkeypatch):
    base = tiny_base()
    base.model.to(torch.bfloat16)
    assert fits(base)
    wrong = tiny_base("qwen2")
    wrong.model.to(torch.bfloat16)
    monkeypatch.setattr("graft.generate.cached.first_position", lambda config: 5)
    assert fits(wrong)  # RoPE sees distances alone
    learned = tiny_base("gpt2")
    learned.model.to(torch.bfloat16)
    assert not fits(learned)


@pytest.mark.parametrize(
    ("name", "fit"),
    [("llama", True), ("gemma3_text", True), ("bloom", True), ("gemma4_text", True), ("deepseek_v3", True),
     ("mamba", False), ("rwkv", False), ("bamba", False), ("xlnet", False)],
)  # fmt: skip
def test_what_keeps_another_state_than_keys_and_values_does_not_fit(name, fit):
    import families

    from graft.base.base import Base

    assert fits(Base(families.build(name))) == fit
