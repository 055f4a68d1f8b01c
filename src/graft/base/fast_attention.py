"""An implementation of attention in transformers' registries: our kernel where it computes what sdpa does.

Masks are made as for sdpa. A mask that gives each query one range of keys (causal, a window, padding,
documents that share a row) becomes these ranges, once per forward: keys that are not seen are skipped. A mask
with gaps, an additive one, a position bias and dropout are left to sdpa, and so is compiled code.
"""

import functools
import inspect
import sys
import threading
import weakref
from typing import Any

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from graft.kernels import native
from graft.kernels.attention import attention, ranges_of

NAME, STOCK = "native_sdpa", "sdpa"
_masks = threading.local()


def fits(model: Any) -> bool:
    """Return whether a model attends by sdpa in all of its parts, and asks for it in no other way."""
    parts = [model, *(m for m in model.modules() if hasattr(m, "_can_set_attn_implementation"))]
    wrapped = (STOCK, f"graft_{STOCK}")  # as `attention` names it under inserts
    if any(getattr(part.config, "_attn_implementation", None) not in wrapped for part in parts):
        return False
    return all(part._can_set_attn_implementation() and not _asks(type(part).__module__) for part in parts)


@functools.cache
def _asks(module: str) -> bool:
    """Return whether the code of a model's module goes another way for sdpa: then no other name will do."""
    return '_attn_implementation == "sdpa"' in inspect.getsource(sys.modules[module])


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **keywords: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Do what transformers' `sdpa_attention_forward` does."""
    plain = not dropout and all(keywords.get(name) is None for name in ("position_bias", "softcap", "cache"))
    ranges = None
    if plain and _ready(query, key, value, attention_mask):
        if attention_mask is not None:
            ranges = _ranges(attention_mask)
        if attention_mask is None or ranges is not None:
            causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
            causal = bool(causal) and attention_mask is None
            if causal:  # the first query stands at the first key; more keys are room that is not filled yet
                key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
            scale = query.shape[3] ** -0.5 if scaling is None else scaling
            out = attention(query, key, value, scale=scale, causal=causal, ranges=ranges)
            return out.transpose(1, 2), None
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal,
        **keywords,
    )  # fmt: skip


def _ready(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> bool:
    if torch.compiler.is_compiling() or not native.shaped(query, key, value) or query.shape[2] == 1:
        return False  # of one query there is nothing to save: torch reads keys and values once as well
    if not query.dtype == key.dtype == value.dtype or len(query) != len(key) or query.shape[1] % key.shape[1]:
        return False
    if mask is None:
        return True
    if mask.dtype != torch.bool or mask.device.type != "cpu" or len(mask) not in (1, len(query)):
        return False
    return mask.shape[1:] == (1, query.shape[2], key.shape[2])


def _ranges(mask: torch.Tensor) -> torch.Tensor | None:
    """Return the ranges that a mask stands for; the blocks of one forward share a mask, or a few."""
    known: dict[int, Any] = _masks.__dict__.setdefault("known", {})
    found = known.get(id(mask))
    if found is None or found[0]() is not mask or found[1] != mask._version:
        if len(known) >= 8:
            known.clear()
        shared = mask[:1] if mask.stride(0) == 0 else mask
        found = known[id(mask)] = (weakref.ref(mask), mask._version, ranges_of(shared))
    ranges: torch.Tensor | None = found[2]
    return ranges


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
