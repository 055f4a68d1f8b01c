"""Count a model's parameters, and compute a fingerprint that tells it from other models."""

import hashlib
import json
from typing import Any

import torch
from torch import nn

from graft.core.anatomy import kind_of
from graft.quant import is_packed


def count(model: Any) -> int:
    """Count parameters; packed weights count as the numbers they stand for, tied tensors once."""
    packed = [module for module in model.modules() if is_packed(module)]
    held = {
        id(p) for module in packed for name, p in module.named_parameters(recurse=False) if name != "bias"
    }
    plain = sum(p.numel() for p in model.parameters() if id(p) not in held)
    return plain + sum(module.in_features * module.out_features for module in packed)


def fingerprint(model: Any) -> str:
    """Return the SHA-256 of the architecture and of samples of embeddings and norms.

    Quantisation does not change these, so a model and its quantised form have the same fingerprint: an
    adapter trained on NF4 loads onto the original. A model of another shape has another one, and so has a
    model whose embeddings or norms were trained further.
    """
    keys = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")
    shape = {key: getattr(model.config, key, None) for key in keys}
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
    for name, p in sorted(model.named_parameters()):
        module = model.get_submodule(name.rpartition(".")[0])
        if isinstance(module, nn.Embedding) or kind_of(module) == "norm":
            step = max(1, p.numel() // 1024)
            sample = p.detach().flatten()[::step].to("cpu", torch.bfloat16)
            digest.update(name.encode() + sample.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()
