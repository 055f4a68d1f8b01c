"""A row answers beside others as alone, whatever the model: together, or run apart with a notice."""

import warnings

import families
import pytest
import torch
from torch.testing import assert_close
from transformers import DebertaV2ForMaskedLM

from graft.base.base import Base
from graft.errors import AdapterError, Notice, UsageError
from graft.methods.lora import LoRA
from graft.methods.pfeiffer import Pfeiffer
from graft.methods.prefix import PrefixTuning
from graft.methods.prompt import PromptTuning
from models import randomise

IDS = torch.randint(10, 250, (4, 26), generator=torch.Generator().manual_seed(3))
ROWS = ["x", None, "y", "x"]


def base_with(name, *methods):
    """Return a base with adapters x, y, ... of these methods, moved from where they were born."""
    base = Base(families.build(name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        for seed, (label, method) in enumerate(zip("xyz", methods, strict=False)):
            randomise(base.attach(label, method), seed, scale=0.05)
    return base


def answer(base, rows, names, mask=None):
    ids = IDS[rows]
    extra = {"decoder_input_ids": ids[:, :5]} if base.family == "seq2seq" else {}
    mask = torch.ones_like(ids) if mask is None else mask
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        return base(ids, adapters=names, attention_mask=mask, **extra).logits


def check_mixed(base):
    mixed = answer(base, slice(None), ROWS)
    for row, name in enumerate(ROWS):
        assert_close(mixed[row], answer(base, slice(row, row + 1), [name])[0], atol=2e-5, rtol=1e-4)
    assert (mixed[0] - answer(base, slice(0, 1), [None])[0]).abs().max() > 1e-3


@pytest.mark.parametrize(
    "name",
    ["bart", "marian", "m2m_100", "gemma3n_text", "falcon_h1", "llama4_text", "mpt", "bert", "qwen3_next"],
)
def test_a_bare_row_beside_virtual_tokens_answers_as_alone(name):
    check_mixed(base_with(name, PromptTuning(num_virtual_tokens=5), PromptTuning(num_virtual_tokens=2)))


@pytest.mark.parametrize("name", ["gemma3n_text", "falcon_h1", "t5"])
def test_a_bare_row_beside_a_prefix_answers_as_alone(name):
    check_mixed(base_with(name, PrefixTuning(num_virtual_tokens=3), PromptTuning(num_virtual_tokens=2)))


@pytest.mark.parametrize(
    ("name", "methods"),
    [
        ("xlnet", (LoRA(r=2), LoRA(r=3))),  # time comes first
        ("switch_transformers", (LoRA(r=2), LoRA(r=3))),  # experts see the tokens that are sent to them
        ("rwkv", (PromptTuning(num_virtual_tokens=5), LoRA(r=2))),  # its state runs through filler
        ("recurrent_gemma", (PromptTuning(num_virtual_tokens=5), LoRA(r=2))),
    ],
)
def test_rows_that_cannot_be_cut_are_run_apart_with_a_notice(name, methods):
    base = base_with(name, *methods)
    with pytest.warns(Notice, match="run apart"):
        assert not base.mixable(ROWS)
    check_mixed(base)


def test_projections_of_relative_positions_which_no_row_owns_are_not_cut():
    config = families.small_config("deberta-v2")
    config.relative_attention, config.pos_att_type = True, ["p2c", "c2p"]
    torch.manual_seed(0)
    base = Base(DebertaV2ForMaskedLM(config).eval())
    for seed, name in enumerate("xy"):
        randomise(base.attach(name, LoRA(r=2)), seed, scale=0.05)
    with pytest.warns(Notice, match="run apart"):
        assert not base.mixable(ROWS)
    check_mixed(base)


def test_what_was_asked_of_two_prompts_of_one_length_holds_beside_a_bare_row():
    base = base_with("rwkv", PromptTuning(num_virtual_tokens=3), PromptTuning(num_virtual_tokens=3))
    answer(base, slice(0, 2), ["x", "y"])
    check_mixed(base)


def test_a_question_is_asked_once_and_again_only_after_another_adapter_came():
    base = base_with("xlnet", LoRA(r=2), LoRA(r=3))
    answer(base, slice(None), ROWS)
    calls = []
    base.model.register_forward_hook(lambda *_: calls.append(1))
    answer(base, slice(None), ROWS)
    assert len(calls) == len(set(ROWS))


def test_no_notice_where_rows_share_a_forward():
    base = base_with("llama", LoRA(r=2), Pfeiffer(m=4), PromptTuning(num_virtual_tokens=3))
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        assert base.mixable(["x", "y", "z", None])


def test_a_loss_of_rows_that_are_run_apart_is_refused():
    base = base_with("xlnet", LoRA(r=2), LoRA(r=3))
    with pytest.raises(AdapterError, match="rows of one adapter"):
        base(IDS, adapters=ROWS, labels=IDS)


@pytest.mark.parametrize("name", ["qwen3_next", "mamba", "zamba2", "granitemoehybrid"])
def test_rows_out_of_order_need_no_cache_that_can_be_reordered(name):
    base = base_with(name, LoRA(r=2), LoRA(r=3))
    check_mixed(base)
    with pytest.raises(UsageError, match="sort the rows"):
        base(IDS, adapters=ROWS, use_cache=True)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "name", ["mistral", "gemma2", "gpt_oss", "mpt", "cohere2", "qwen3_next", "zamba2", "bamba", "mamba2"]
)
def test_a_padded_row_under_virtual_tokens_answers_as_alone(name, side):
    base = base_with(name, PromptTuning(num_virtual_tokens=5))
    mask = torch.ones(2, 26, dtype=torch.long)
    kept = slice(7, None) if side == "left" else slice(0, 19)
    mask[0] = 0
    mask[0, kept] = 1
    padded = answer(base, slice(0, 2), ["x", "x"], mask)[0, kept]
    with torch.no_grad(), base.using("x"):
        alone = base(IDS[:1, kept]).logits[0]
    assert_close(padded, alone, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["bart", "m2m_100", "t5", "bert", "roberta"])
def test_an_encoders_padding_lies_behind_text_and_virtual_tokens(name):
    """Learnt positions are counted from the first place of a row."""
    base = base_with(name, PromptTuning(num_virtual_tokens=5))
    mask = torch.ones(2, 26, dtype=torch.long)
    mask[0, 19:] = 0
    padded = answer(base, slice(0, 2), ["x", "x"], mask)[0]
    extra = {"decoder_input_ids": IDS[:1, :5]} if base.family == "seq2seq" else {}
    with torch.no_grad(), base.using("x"):
        alone = base(IDS[:1, :19], **extra).logits[0]
    assert_close(padded[: len(alone)], alone, atol=2e-5, rtol=1e-4)
