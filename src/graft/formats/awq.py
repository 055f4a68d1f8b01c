"""AWQ checkpoints, 4 bits: `quant_method: awq`, version gemm.

    qweight (in, out/8) int32    qzeros (in/g, out/8) int32    scales (in/g, out) fp16

Eight neighbours of the outputs share a word, from the lowest bits up: 0 2 4 6 1 3 5 7. Zero points are stored
as they are. Lin et al. 2023, arXiv 2306.00978; layout of AutoAWQ.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from graft.errors import ModelError
from graft.formats.whole import PER_WORD, Whole, pack_words, unpack_words

PARTS = ("qweight", "qzeros", "scales")
LOWEST = 0
ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
BACK = [0, 4, 1, 5, 2, 6, 3, 7]


def fits(rows: int, columns: int) -> bool:
    """Return whether a layer (rows, columns) fills whole words."""
    return rows % PER_WORD == 0


def scale_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the scales in a model of this dtype."""
    return torch.float16


def settings(group: int, skipped: Sequence[str]) -> dict[str, Any]:
    """Return the quantization_config of a folder.  skipped: linears that stay as they are."""
    config = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}
    return config | {"modules_to_not_convert": list(skipped) or None}


def check(config: dict[str, Any]) -> None:
    """Raise ModelError for settings that we cannot read."""
    version, bits = (
        str(config.get("version") or config.get("format") or "gemm").lower(),
        config.get("bits", 4),
    )
    if (
        bits != 4
        or version != "gemm"
        or config.get("backend") == "llm-awq"
        or not config.get("zero_point", True)
    ):
        raise ModelError(
            f"AWQ in {bits} bits, version {version!r}, zero_point {config.get('zero_point', True)}",
            "4 bits, version gemm, with zero points",
            "load the original model with quant='int4'",
        )


def pack(layer: Whole) -> dict[str, Tensor]:
    """Return the tensors of a layer."""
    qweight, qzeros = (pack_words(_ordered(part.T, ORDER)) for part in (layer.codes, layer.zeros))
    return {"qweight": qweight, "qzeros": qzeros, "scales": layer.scale.T.contiguous()}


def unpack(name: str, parts: dict[str, Tensor], config: dict[str, Any]) -> Whole:
    """Return a layer from its tensors."""
    codes, zeros = (
        _ordered(unpack_words(parts[part]), BACK).T.contiguous() for part in ("qweight", "qzeros")
    )
    group = config.get("group_size", -1)
    return Whole(codes, zeros, parts["scales"].T.contiguous(), group if group > 0 else codes.shape[1])


def _ordered(codes: Tensor, order: list[int]) -> Tensor:
    """Return every eight columns in another order."""
    return codes.unflatten(1, (-1, PER_WORD))[..., order].flatten(1)
