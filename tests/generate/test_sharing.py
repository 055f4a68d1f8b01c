"""Prompts of any length in one call are continued as each is by itself, whatever the model does with padding.

Oracle: transformers' generate on one row, in a base that has no adapter.
"""

import warnings
from collections import deque

import families
import pytest
import torch

from graft.base.base import Base
from graft.errors import Notice
from graft.generate.generate import evaluating, write
from graft.generate.plain import settings
from graft.generate.request import Request
from graft.generate.sampling import Sampling
from graft.methods.lora import LoRA
from graft.methods.prompt import PromptTuning
from models import randomise

IDS = torch.randint(10, 250, (5, 20), generator=torch.Generator().manual_seed(5)).tolist()
PROMPTS = [IDS[0][:13], IDS[1], IDS[2][:13], IDS[3][:6], IDS[4]]
HOW = Sampling(max_new_tokens=5)


def written(base, names):
    """Return the new tokens of the first prompts under these adapters."""
    requests = [
        Request(list(ids), name, HOW, frozenset([2]), index=row)
        for row, (ids, name) in enumerate(zip(PROMPTS, names, strict=False))
    ]
    with torch.no_grad(), evaluating(base), warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        deque(write(base, requests), maxlen=0)
    return [request.tokens for request in requests]


def by_whole_forwards(base, ids, name):
    """Return the greedy tokens of one prompt, by forwards over all of the text."""
    ids = torch.tensor([ids])
    new = []
    with torch.no_grad():
        while len(new) < HOW.max_new_tokens and new[-1:] != [2]:
            new.append(int(base(ids, adapters=[name], use_cache=False).logits[0, -1].argmax()))
            ids = torch.cat([ids, torch.tensor([new[-1:]])], 1)
    return new


@pytest.mark.parametrize(
    "name", ["rwkv", "minimax", "xlstm", "recurrent_gemma", "mamba", "llama", "qwen3_next", "gemma3n_text"]
)
def test_bare_prompts_are_continued_as_alone(name):
    base = Base(families.build(name))
    texts = written(base, [None] * len(PROMPTS))
    for prompt, text in zip(PROMPTS, texts, strict=True):
        alone = base.model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            generation_config=settings(HOW.max_new_tokens, 0, cache=True),
            eos_token_id=2,
        )[0, len(prompt) :].tolist()
        assert text == alone


@pytest.mark.parametrize("name", ["rwkv", "minimax"])
def test_a_model_that_ignores_the_mask_of_padding_is_named(name):
    with pytest.warns(Notice, match=r"share a batch: what \w+ writes depends on"):
        assert Base(families.build(name)).sharing() != "free"


@pytest.mark.parametrize("name", ["llama", "mistral", "mamba", "bamba", "gpt2"])
def test_a_model_that_heeds_the_mask_shares_batches_freely(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        assert Base(families.build(name)).sharing() == "free"


@pytest.mark.parametrize("name", ["mamba", "mamba2", "rwkv", "gemma2", "zamba2", "bloom", "mixtral"])
def test_prompts_of_several_adapters_are_continued_as_alone_and_as_by_whole_forwards(name):
    base = Base(families.build(name))
    randomise(base.attach("lora", LoRA(r=2)), scale=0.05)
    randomise(base.attach("prompt", PromptTuning(num_virtual_tokens=4)), scale=0.05)
    names = ["prompt", "lora", None, "prompt", "lora"]
    texts = written(base, names)
    for row, name in enumerate(names):
        assert by_whole_forwards(base, PROMPTS[row], name) == texts[row]


def test_text_under_a_soft_prompt_is_written_without_a_state_that_may_hold_it_already():
    base = Base(families.build("mamba"))
    base.attach("prompt", PromptTuning(num_virtual_tokens=4))
    assert not base.cacheable(["prompt", None]) and base.cacheable([None])
