"""Checkpoints of compressed-tensors (llm-compressor, vLLM) in the format pack-quantized, 4 bits.

    weight_packed (out, ⌈in/8⌉) int32    weight_scale (out, in/g), the model's dtype
    weight_zero_point (⌈out/8⌉, in/g) int32, if not symmetric    weight_shape (2) int64: out, in

They count from −8 and store their numbers plus 8, which are our codes and zero points; symmetric ones have no
zero point, which is 8 here. With the strategy `channel` a row is one group. Layout of compressed-tensors
0.20; transformers loads our folders, which are not symmetric, with `dequantize=True`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from graft.errors import ModelError
from graft.formats.whole import Whole, check_order, pack_words, unpack_words

PARTS = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")
LOWEST = 0
KNOWN = {"format": ("pack-quantized",), "num_bits": (4,), "type": ("int",), "strategy": ("group", "channel")}
MIDDLE = 8  # the zero point of symmetric layers


def fits(rows: int, columns: int) -> bool:
    """Return whether the format can hold a layer (rows, columns): any, as words may have room to spare."""
    return True


def scale_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the scales in a model of this dtype; its readers round them to it."""
    return dtype


def settings(group: int, skipped: Sequence[str]) -> dict[str, Any]:
    """Return the quantization_config of a folder.  skipped: linears that stay as they are."""
    weights = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": group}
    scheme = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": None,
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": scheme},
        "ignore": list(skipped),
        "kv_cache_scheme": None,
    }


def check(config: dict[str, Any]) -> None:
    """Raise ModelError for settings that we cannot read."""
    schemes = list((config.get("config_groups") or {}).values())
    wrong = [key for key in ("transform_config", "sparsity_config") if config.get(key)]
    for scheme in schemes:
        facts = {
            "format": config.get("format"),
            **{k: v for k, v in scheme.items() if v},
            **(scheme["weights"] or {}),
        }
        wrong += [f"{key} {facts.get(key)}" for key, known in KNOWN.items() if facts.get(key) not in known]
        wrong += ["quantised activations"] if scheme.get("input_activations") else []
    if wrong or not schemes:
        raise ModelError(
            f"compressed-tensors with {', '.join(dict.fromkeys(wrong)) or 'no config_groups'}",
            "pack-quantized, 4 bits, in groups or channels, weights only",
            "load the original model with quant='int4'",
        )


def pack(layer: Whole) -> dict[str, Tensor]:
    """Return the tensors of a layer."""
    return {
        "weight_packed": pack_words(layer.codes),
        "weight_zero_point": pack_words(layer.zeros.T).T.contiguous(),
        "weight_scale": layer.scale,
        "weight_shape": torch.tensor(layer.codes.shape),
    }


def unpack(name: str, parts: dict[str, Tensor], config: dict[str, Any]) -> Whole:
    """Return a layer from its tensors. Raises ModelError if its inputs are grouped out of order."""
    scale = parts["weight_scale"]
    rows, columns = parts["weight_shape"].tolist()
    group = _group(name, columns, scale.shape[1], config)
    check_order(name, parts.get("weight_g_idx"), group)
    zeros = torch.full(scale.shape, MIDDLE, dtype=torch.uint8)
    if "weight_zero_point" in parts:
        zeros = unpack_words(parts["weight_zero_point"].T)[:, :rows].T.contiguous()
    return Whole(unpack_words(parts["weight_packed"])[:, :columns].contiguous(), zeros, scale, group)


def _group(name: str, columns: int, count: int, config: dict[str, Any]) -> int:
    """Return the number of inputs in a group of a layer that has `count` of them.

    Each layer may follow another of the config's schemes.
    """
    weights = [scheme["weights"] for scheme in config["config_groups"].values()]
    sizes = [columns if one["strategy"] == "channel" else one["group_size"] for one in weights]
    for size in sizes:
        if -(-columns // size) == count:
            return int(size)
    raise ModelError(
        f"{name}: {count} scales for {columns} inputs",
        f"groups of {sizes}",
        "compare with the original folder",
    )
