"""A Llama with random weights, made on its device one tensor after the other: no file, no second copy."""

from typing import Any

import internals
import torch
from shapes import Shape
from torch import nn
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM, LlamaRotaryEmbedding

import graft

SPREAD = 0.02  # of the weights, as transformers draws them


def base(shape: Shape, quant: str | None, device: torch.device, longest: int) -> graft.Base:
    """Return a base of this shape in bf16, its blocks' linears packed as `quant` says.

    longest: the most tokens of a row.  The same shape and device give the same weights.
    """
    config = LlamaConfig(**shape.config() | {"max_position_embeddings": longest})
    with torch.device("meta"):
        model: Any = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    generator = torch.Generator(device).manual_seed(0)
    model.model.rotary_emb = LlamaRotaryEmbedding(config).to(device)
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    for name, linear in linears.items():
        weight = _normal(linear.weight, device, generator)
        if quant is None or name == "lm_head":
            linear.weight = nn.Parameter(weight, requires_grad=False)
            continue
        packed = internals.QuantLinear.pack(weight, internals.Scheme(quant))
        assert packed is not None  # what was drawn is finite
        model.set_submodule(name, packed)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:  # a table, or the weights of a norm
                table = isinstance(module, nn.Embedding)
                made = (
                    _normal(parameter, device, generator)
                    if table
                    else torch.ones_like(parameter, device=device)
                )
                setattr(module, name, nn.Parameter(made, requires_grad=False))
    if shape.tied:
        model.tie_weights()
    return graft.Base(model, None, f"random {shape.name}")


def _normal(like: torch.Tensor, device: torch.device, generator: torch.Generator) -> torch.Tensor:
    drawn = torch.empty(like.shape, dtype=like.dtype, device=device)
    return drawn.normal_(0, SPREAD, generator=generator)
