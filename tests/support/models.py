"""Tiny random models of many families, and one batch of ids for each."""

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
    """A random model in fp32. bare: an encoder without a head.  A family that has no entry above needs all settings."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**CONFIGS.get(family, {}), **changes})
    auto = (
        AutoModelForMaskedLM
        if family in ENCODERS
        else AutoModelForSeq2SeqLM
        if family in SEQ2SEQ
        else AutoModelForCausalLM
    )
    model = (AutoModel if bare else auto).from_config(config)
    with (
        torch.no_grad()
    ):  # the usual 0.02 makes tiny models nearly linear; spread the weights so that errors show
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return model.eval()


def tiny_base(family: str = "llama", **settings: object) -> Base:
    """The same, as a Base."""
    return Base(tiny_model(family, **settings), name=f"tiny-{family}")


def inputs(family: str, rows: int = 3, length: int = 7, seed: int = 1) -> dict[str, torch.Tensor]:
    """Keywords of one forward, without padding."""
    ids = torch.randint(4, 90, (rows, length), generator=torch.Generator().manual_seed(seed))
    extra = {"decoder_input_ids": ids[:, :4]} if family in SEQ2SEQ else {}
    return {"ids": ids, **extra}


def randomise(adapter: object, seed: int = 0, scale: float = 0.2) -> None:
    """Random values in every trained tensor, so that equalities are not equalities of zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in adapter.parameters():
            p.add_(torch.randn(p.shape, generator=generator).to(p.dtype) * scale)
