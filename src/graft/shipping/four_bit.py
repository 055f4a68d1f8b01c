"""Write a base as a folder of GPTQ, AWQ, compressed-tensors or bitsandbytes, for vLLM and transformers.

The first three have whole zero points (`formats.whole`), so everything is rounded: each layer of the blocks
anew, from W + D in fp32; the scales of a base packed in groups are reused where they give the smallest error.
What QA-LoRA adds to the minima of groups is rounded too (our own folders and GGUF hold it exactly). Linears
that a format cannot hold stay as they are, and its config names them.
bitsandbytes is NF4 or FP4 as we have it: its folders hold the same bytes.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from graft.errors import ModelError, UsageError
from graft.formats import bnb
from graft.formats.int4 import FORMATS
from graft.formats.whole import rounded
from graft.quant import QuantLinear, packed_layers
from graft.quant.experts import outer_modules
from graft.quant.replace import is_linear, packable
from graft.shipping import instructions
from graft.shipping.hf import checked_copy, write_state
from graft.shipping.origin import Origin
from graft.shipping.updates import ideal, unmerged

if TYPE_CHECKING:
    from graft.base.base import Base

GROUPS = (128, 64, 32)  # for a base that has none of its own, the largest that fits


def write_whole(base: "Base", folder: Path, name: str, to: str, origin: Origin | None = None) -> list[str]:
    """Write a folder of one of FORMATS; return the names of layers that were unpacked.

    Raises UsageError if the format can hold no layer, ModelError if it is too narrow for a value.
    """
    form = FORMATS[to]
    with unmerged(base) as names:
        layers, group = chosen(base.model, form)
        if not layers:
            raise UsageError(
                f"{to} can hold no linear layer of {base.name}",
                "blocks of linears whose sizes are multiples of 32",
                "export it with to='hf' or 'gguf'",
            )
        packed = _rounded(base, names, form, layers, group)
    settings = form.settings(group, _skipped(base.model, packed))
    unpacked = _write(base, folder, name, packed, settings, origin)
    return [path for path in unpacked if path not in packed]


def write_bnb(base: "Base", folder: Path, name: str, origin: Origin | None = None) -> list[str]:
    """Write a folder of bitsandbytes, packed layers as they are; return the unpacked ones: experts."""
    layers = packed_layers(base.model)
    packed = {path: bnb.pack(path, layer) for path, layer in layers.items()}
    scheme = next(iter(layers.values())).scheme
    settings = bnb.settings(scheme, base.file_dtype, _skipped(base.model, layers))
    return [path for path in _write(base, folder, name, packed, settings, origin) if path not in packed]


def check_bnb(base: "Base", into: str | None) -> None:
    """Raise UsageError for a base that bitsandbytes cannot store, or a merge that leaves the four bits."""
    if base.quant not in ("nf4", "fp4"):
        raise UsageError(
            f"{base.name} ({base.quant}) as bnb", "a base in nf4 or fp4", "load it with quant='nf4'"
        )
    if into != "packed":
        raise UsageError(
            f"into={into!r} as bnb", "into='packed'", "leave into out, or export it with to='hf'"
        )


def chosen(model: nn.Module, form: ModuleType) -> tuple[dict[str, nn.Linear | QuantLinear], int]:
    """Return {path: layer} of what the format can hold, and the number of inputs in a group.

    The group is that of the packed layers, if they all have the same.
    """
    fitting: dict[str, nn.Linear | QuantLinear] = {
        path: layer
        for path, layer in packable(model)
        if (isinstance(layer, QuantLinear) and not layer.transposed) or isinstance(layer, nn.Linear)
        if form.fits(layer.out_features, layer.in_features)
    }
    packed = [layer for layer in fitting.values() if isinstance(layer, QuantLinear)]
    blocks = {layer.scheme.block for layer in packed if layer.scheme.grouped}
    group = max(blocks, default=0)
    if len(blocks) != 1 or all(layer.in_features % group for layer in fitting.values()):
        whole = [layer.in_features for layer in fitting.values() if layer.in_features % GROUPS[-1] == 0]
        group = next(size for size in GROUPS if all(columns % size == 0 for columns in whole))
    return {path: layer for path, layer in fitting.items() if layer.in_features % group == 0}, group


def _grouped(layer: nn.Module) -> bool:
    return isinstance(layer, QuantLinear) and layer.scheme.grouped


@torch.no_grad()
def _rounded(
    base: "Base",
    names: Sequence[str],
    form: ModuleType,
    layers: dict[str, nn.Linear | QuantLinear],
    group: int,
) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of these layers, from W + D before any rounding.  names: adapters, not merged."""
    keys = {f"{path}.weight": path for path in layers}
    dtype, packed = form.scale_dtype(base.file_dtype), {}
    with _wide(base.model):
        for key, _, weight in ideal(base, names):
            if path := keys.get(key):
                packed[path] = _packed(path, weight.float(), layers[path], form, group, dtype)
    return packed


@contextlib.contextmanager
def _wide(model: nn.Module) -> Iterator[None]:
    """Let packed layers give their weights in fp32 inside the block, as their codes have them."""
    kinds = {layer: layer.dtype for layer in model.modules() if isinstance(layer, QuantLinear)}
    try:
        for layer in kinds:
            layer.dtype = torch.float32
        yield
    finally:
        for layer, dtype in kinds.items():
            layer.dtype = dtype


def _packed(
    path: str, weight: Tensor, layer: Any, form: ModuleType, group: int, dtype: torch.dtype
) -> dict[str, Tensor]:
    kept = (layer.scale, layer.minimum) if _grouped(layer) and layer.scheme.block == group else None
    whole = rounded(weight, group, form.LOWEST, dtype, kept)
    if not torch.isfinite(whole.scale).all():
        raise ModelError(
            f"{path} has values beyond fp16", "values that fp16 can hold", "export it with to='hf'"
        )
    tensors: dict[str, Tensor] = form.pack(whole)
    return tensors


def _skipped(model: nn.Module, layers: Any) -> list[str]:
    """Return the linears that stay as they are."""
    return [
        path
        for path, m in outer_modules(model)
        if (is_linear(m) or isinstance(m, QuantLinear)) and path not in layers
    ]


def _write(
    base: "Base",
    folder: Path,
    name: str,
    packed: dict[str, dict[str, Tensor]],
    config: dict[str, Any],
    origin: Origin | None,
) -> list[str]:
    """Write the folder, with these tensors in place of their layers' weights; return what was unpacked."""
    clone, unpacked = checked_copy(base.model, dtype=base.file_dtype)
    clone.config.quantization_config = config
    state = clone.state_dict()
    for path, tensors in packed.items():
        del state[f"{path}.weight"]
        state |= {f"{path}.{part}": tensor for part, tensor in tensors.items()}
    write_state(base, clone, state, folder)
    instructions.write_packed(base, folder, name, origin)
    return unpacked
