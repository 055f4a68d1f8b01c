"""Tiny random models of many families, and one batch of ids for each."""

import copy
import functools
import json
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
)

from graft.base.base import Base

SMALL = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "vocab_size": 96,
}
LLAMA = {**SMALL, "num_key_value_heads": 2, "max_position_embeddings": 64}
CONFIGS = {
    "llama": LLAMA,
    "qwen2": LLAMA,
    "qwen3": {**LLAMA, "head_dim": 16},
    "mistral": LLAMA,
    "gemma": {**LLAMA, "head_dim": 16},
    "gemma2": {**LLAMA, "head_dim": 16},
    "phi": LLAMA,
    "phi3": {**LLAMA, "pad_token_id": 0},
    "gpt2": {"n_embd": 64, "n_head": 4, "n_layer": 2, "vocab_size": 96, "n_positions": 64},
    "gpt_neox": {**SMALL, "max_position_embeddings": 64},
    "opt": {**SMALL, "ffn_dim": 128, "word_embed_proj_dim": 64, "max_position_embeddings": 64},
    "bert": {**SMALL, "max_position_embeddings": 64},
    "roberta": {**SMALL, "max_position_embeddings": 66, "pad_token_id": 1},
    "t5": {
        "d_model": 64,
        "d_kv": 16,
        "d_ff": 128,
        "num_layers": 2,
        "num_heads": 4,
        "vocab_size": 96,
        "decoder_start_token_id": 0,
    },
}
ENCODERS, SEQ2SEQ = ("bert", "roberta"), ("t5",)


def tiny_model(family: str, *, seed: int = 0, bare: bool = False, **changes: object) -> torch.nn.Module:
    """Return a random model in fp32 that no one else holds.

    bare: an encoder without a head.  changes: entries of its configuration; a family that has no entry in
    CONFIGS needs all of them. Each model is drawn once; later calls get a copy of it, and leave torch's
    generator where drawing it would have.
    """
    model, generator = _drawn(family, seed, bare, json.dumps(changes, sort_keys=True))
    torch.set_rng_state(generator)
    return copy.deepcopy(model)


@functools.lru_cache(maxsize=64)
def _drawn(family: str, seed: int, bare: bool, changes: str) -> tuple[torch.nn.Module, torch.Tensor]:
    """Return the model of these settings (changes: as JSON) and the state torch's generator is left in."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**CONFIGS.get(family, {}), **json.loads(changes)})
    model = (AutoModel if bare else _class_with_head(family)).from_config(config)
    # The usual 0.02 makes tiny models nearly linear; spread the weights so that errors show.
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return model.eval(), torch.get_rng_state()


def _class_with_head(family: str) -> Any:
    if family in ENCODERS:
        return AutoModelForMaskedLM
    return AutoModelForSeq2SeqLM if family in SEQ2SEQ else AutoModelForCausalLM


def tiny_base(family: str = "llama", **settings: object) -> Base:
    """Return `tiny_model` with these settings as a Base."""
    return Base(tiny_model(family, **settings), name=f"tiny-{family}")


def inputs(family: str, rows: int = 3, length: int = 7, seed: int = 1) -> dict[str, torch.Tensor]:
    """Return the keywords of one forward, without padding: ids (rows, length)."""
    ids = torch.randint(4, 90, (rows, length), generator=torch.Generator().manual_seed(seed))
    extra = {"decoder_input_ids": ids[:, :4]} if family in SEQ2SEQ else {}
    return {"ids": ids, **extra}


def randomise(adapter: object, seed: int = 0, scale: float = 0.2) -> None:
    """Add random values to every trained tensor, so that no equality is one of zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in adapter.parameters():
            p.add_(torch.randn(p.shape, generator=generator).to(p.dtype) * scale)
