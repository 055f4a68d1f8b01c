"""Tell a weight from others by a few of its values, taken before it is packed.

Packing changes every value. So a packed layer keeps a digest of samples of the weight that it was made from:
by it an adapter knows its base in 16 bits and packed, and knows a merged model from it. The samples are the
same for weights that were stored in bf16, whether they are read as bf16, fp16 or fp32.
"""

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from graft.quant.experts import PackedExperts, outer_modules
from graft.quant.linear import PACKED, QuantLinear

SAMPLES = 1024  # values of a tensor
# fp16 rounds bf16 numbers below 2⁻¹⁷ and holds all others up to 65504: what is smaller than this counts as 0.
SMALLEST = 2.0**-16


def samples(tensor: Tensor) -> Tensor:
    """Return about SAMPLES values of a tensor, spread evenly over it, as bf16 on the CPU."""
    step = max(1, tensor.numel() // SAMPLES)
    return tensor.detach().flatten()[::step].to("cpu", torch.bfloat16)


def digest_of(tensor: Tensor) -> str:
    """Return a digest of a weight's samples; "" of one without values, as memory is planned with."""
    if tensor.is_meta or type(tensor) not in (Tensor, nn.Parameter):
        return ""
    values = samples(tensor)
    values = values.masked_fill(values.abs() < SMALLEST, 0.0)
    return hashlib.sha256(values.view(torch.int16).numpy().tobytes()).hexdigest()


def of_blocks(model: nn.Module) -> str | None:
    """Return a digest of samples of every weight in a model's blocks, as they were before they were packed.

    None where that is unknown of one: a folder holds packed weights only.
    """
    lists = {name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    whole = hashlib.sha256()
    for name, module in outer_modules(model):
        if any(name[:at] in lists for at, letter in enumerate(name) if letter == "."):
            for key, digest in _digests(name, module).items():
                if not digest:
                    return None
                whole.update(f"{key} {digest}\n".encode())
    return whole.hexdigest()


def _digests(name: str, module: Any) -> dict[str, str]:
    """Return the digest of each weight that a module owns, by the name that it has in the plain model."""
    if isinstance(module, PackedExperts):
        return {name: module.origin}
    packed = {f"{name}.weight": module.origin} if isinstance(module, QuantLinear) else {}
    own = {leaf: p for leaf, p in module.named_parameters(recurse=False) if not packed or leaf not in PACKED}
    return packed | {f"{name}.{leaf}": digest_of(parameter) for leaf, parameter in own.items()}
