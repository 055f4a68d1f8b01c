"""GPTQ checkpoints, 4 bits: `quant_method: gptq`.

    qweight (in/8, out) int32    qzeros (in/g, out/8) int32    scales (in/g, out) fp16
    g_idx (in) int32: i // g

Eight neighbours of the input, or of the outputs for the zero points, share a word. `checkpoint_format: gptq`
holds zero points less one, `gptq_v2` as they are. Programs add that one to the whole word, so a zero point of
0, stored as 15, spoils its neighbour in some of them: we write none below 1, and read as the programs that
write them do. Frantar et al. 2022, arXiv 2210.17323; layout of AutoGPTQ and GPTQModel.
"""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from graft.errors import ModelError
from graft.formats.whole import Whole, check_order, pack_words, unpack_words

PARTS = ("qweight", "qzeros", "scales", "g_idx")
LOWEST = 1  # zero point that we write
ONE_EACH = 0x11111111
FORMATS = ("gptq", "gptq_v2")


def fits(rows: int, columns: int) -> bool:
    """Return whether a layer (rows, columns) fills whole words."""
    return rows % 8 == 0 and columns % 8 == 0


def scale_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the scales in a model of this dtype."""
    return torch.float16


def settings(group: int, skipped: Sequence[str]) -> dict[str, Any]:
    """Return the quantization_config of a folder.  skipped: linears that stay as they are."""
    config = {"quant_method": "gptq", "bits": 4, "group_size": group, "desc_act": False, "sym": False}
    config |= {"lm_head": False, "checkpoint_format": "gptq", "pack_dtype": "int32"}
    return config | ({"dynamic": {f"-:^{re.escape(name)}$": {} for name in skipped}} if skipped else {})


def check(config: dict[str, Any]) -> None:
    """Raise ModelError for settings that we cannot read."""
    form = _format(config)
    if config.get("bits") != 4 or form not in FORMATS:
        raise ModelError(
            f"GPTQ in {config.get('bits')} bits, format {form!r}",
            f"4 bits, {' or '.join(FORMATS)}",
            "load the original model with quant='int4'",
        )


def pack(layer: Whole) -> dict[str, Tensor]:
    """Return the tensors of a layer, in the format gptq."""
    inputs = torch.arange(layer.codes.shape[1], dtype=torch.int32)
    return {
        "qweight": pack_words(layer.codes).T.contiguous(),
        "qzeros": pack_words(layer.zeros.T - 1),
        "scales": layer.scale.T.contiguous(),
        "g_idx": inputs // layer.group,
    }


def unpack(name: str, parts: dict[str, Tensor], config: dict[str, Any]) -> Whole:
    """Return a layer from its tensors. Raises ModelError if its inputs are grouped out of order."""
    codes, qzeros = unpack_words(parts["qweight"].T), parts["qzeros"]
    group = config.get("group_size", -1)
    group = group if group > 0 else codes.shape[1]
    order = parts["g_idx"] if config.get("desc_act") else parts.get("g_idx")  # sorted ones must say how
    check_order(name, order, group)
    if _format(config) == "gptq":
        qzeros = qzeros + ONE_EACH
    return Whole(codes, unpack_words(qzeros).T.contiguous(), parts["scales"].T.contiguous(), group)


def _format(config: dict[str, Any]) -> str:
    return str(config.get("checkpoint_format") or config.get("format") or "gptq")
