"""Prompts of any length in one call are continued as each is by itself, whatever the model does with padding.

Oracle: transformers' generate on one row, in a base that has no adapter.
"""

import warnings

import families
import pytest
import torch

from graft.base.base import Base
from graft.errors import Notice
from graft.generate.batches import batches
from graft.generate.generate import Sampling
from graft.methods.lora import LoRA
from graft.methods.prompt import PromptTuning
from models import randomise

IDS = torch.randint(10, 250, (5, 20), generator=torch.Generator().manual_seed(5)).tolist()
PROMPTS = [IDS[0][:13], IDS[1], IDS[2][:13], IDS[3][:6], IDS[4]]
HOW = Sampling(max_new_tokens=5)


def written(base, names, cache=None):
    """Return the new tokens of each prompt, as `generate` batches them, with ends of text cut off."""
    found = {}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        kept = base.cacheable(names) if cache is None else cache
        for rows, room in batches(base, names, PROMPTS[: len(names)], HOW.max_new_tokens, None, 8):
            width = max(len(PROMPTS[row]) for row in rows)
            live = torch.tensor([[0] * (width - len(PROMPTS[r])) + [1] * len(PROMPTS[r]) for r in rows])
            ids = torch.tensor([[0] * (width - len(PROMPTS[row])) + PROMPTS[row] for row in rows])
            with base.routed([names[row] for row in rows]) as order:
                out = base.model.generate(
                    ids[order], attention_mask=live[order], generation_config=HOW.config([], 0, room, kept)
                )
            for place, tokens in zip(order, out[:, width:].tolist(), strict=True):
                found[rows[place]] = tokens[: tokens.index(2)] if 2 in tokens else tokens
    return [found[row] for row in range(len(names))]


@pytest.mark.parametrize(
    "name", ["rwkv", "minimax", "xlstm", "recurrent_gemma", "mamba", "llama", "qwen3_next"]
)
def test_bare_prompts_are_continued_as_alone(name):
    base = Base(families.build(name))
    texts = written(base, [None] * len(PROMPTS))
    for prompt, text in zip(PROMPTS, texts, strict=True):
        alone = base.model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            generation_config=HOW.config([], 0, HOW.max_new_tokens),
        )[0, len(prompt) :].tolist()
        assert text == (alone[: alone.index(2)] if 2 in alone else alone)


@pytest.mark.parametrize("name", ["rwkv", "minimax"])
def test_a_model_that_ignores_the_mask_of_padding_is_named(name):
    with pytest.warns(Notice, match=r"share a batch: what \w+ writes depends on"):
        assert Base(families.build(name)).sharing() != "free"


@pytest.mark.parametrize("name", ["llama", "mistral", "mamba", "bamba", "gpt2"])
def test_a_model_that_heeds_the_mask_shares_batches_freely(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        assert Base(families.build(name)).sharing() == "free"


@pytest.mark.parametrize("name", ["mamba", "mamba2", "rwkv", "gemma2", "zamba2"])
def test_prompts_of_several_adapters_are_continued_as_alone_and_as_by_whole_forwards(name):
    base = Base(families.build(name))
    randomise(base.attach("lora", LoRA(r=2)), scale=0.05)
    randomise(base.attach("prompt", PromptTuning(4)), scale=0.05)
    names = ["prompt", "lora", None, "prompt", "lora"]
    texts = written(base, names)
    for row, name in enumerate(names):
        PROMPTS.insert(0, PROMPTS[row])
        try:
            assert written(base, [name]) == [texts[row]]
            assert written(base, [name], cache=False) == [texts[row]]
        finally:
            PROMPTS.pop(0)


def test_text_under_a_soft_prompt_is_written_without_a_state_that_may_hold_it_already():
    base = Base(families.build("mamba"))
    base.attach("prompt", PromptTuning(4))
    assert not base.cacheable(["prompt", None]) and base.cacheable([None])
