"""Checkpoints of bitsandbytes as QuantLinear: 4 bits (nf4, fp4), read and written; 8 bits, read.

    4 bits   W.weight (n/2, 1), W.weight.absmax, .quant_map, .nested_absmax, .nested_quant_map,
             W.weight.quant_state.bitsandbytes__nf4: JSON {shape, blocksize, nested_blocksize, ...}
    8 bits   W.weight (out, in) int8, W.SCB (out,) row maxima, W.weight_format

Blocks of the 4-bit form run over the flat weight. If the block divides the row they never cross one, and the
bytes are taken as they are. If not, the greatest common divisor of both becomes the block: every short block
lies in one long one and has its absmax, so the values stay exactly the same. Rows with no divisor of at least
4 are refused. We write blocks that divide the row, byte for byte as bitsandbytes stores them.
Dettmers et al. 2023, arXiv 2305.14314; layout of bitsandbytes 0.50.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from graft.errors import ModelError, UsageError
from graft.kernels import Codebook, Nested, Packed
from graft.kernels.reference import fp32_absmax
from graft.quant.double import GROUP
from graft.quant.dynamic import SIGNED
from graft.quant.linear import QuantLinear
from graft.quant.scheme import CODEBOOKS, Scheme

STATE = ".weight.quant_state.bitsandbytes__"
SIDE = (
    ".weight.absmax",
    ".weight.quant_map",
    ".weight.nested_absmax",
    ".weight.nested_quant_map",
    ".SCB",
    ".weight_format",
)
BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # that bitsandbytes has
SMALLEST_BLOCK = 4  # below it the absmax takes more room than a 16-bit weight


def settings(scheme: Scheme, dtype: torch.dtype, skipped: Sequence[str]) -> dict[str, Any]:
    """Return the quantization_config of a folder.  skipped: linears that stay as they are."""
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": scheme.name,
        "bnb_4bit_use_double_quant": scheme.double,
        "bnb_4bit_compute_dtype": _word(dtype),
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": list(skipped),
    }


def pack(name: str, layer: QuantLinear) -> dict[str, Tensor]:
    """Return the tensors of a layer in nf4 or fp4. Raises UsageError if bitsandbytes has no such blocks."""
    scheme, columns = layer.scheme, layer.in_features
    if columns % scheme.block or scheme.block not in BLOCKS:
        raise UsageError(
            f"{name}: rows of {columns} weights in blocks of {scheme.block}, for bitsandbytes",
            f"blocks of {BLOCKS[0]}, {BLOCKS[1]}, … {BLOCKS[-1]} weights that divide the row",
            "export it with to='hf', into='packed' (--into) keeps it in 4 bits",
        )
    packed = layer.packed()
    facts = {"quant_type": scheme.name, "blocksize": scheme.block, "dtype": _word(layer.dtype)}
    facts["shape"] = [layer.out_features, columns]
    tensors = {"weight": packed["codes"].view(-1, 1), "weight.absmax": packed["absmax"].flatten()}
    assert scheme.codebook is not None  # nf4 or fp4: see BLOCKS and `check_bnb`
    tensors["weight.quant_map"] = scheme.codebook.levels(packed["codes"].device).clone()
    if scheme.double:
        tensors["weight.nested_absmax"] = packed["nested_absmax"]
        tensors["weight.nested_quant_map"] = SIGNED.levels(packed["codes"].device).clone()
        facts |= {
            "nested_blocksize": GROUP,
            "nested_dtype": "float32",
            "nested_offset": packed["nested_offset"].item(),
        }
    return tensors | {
        STATE[1:] + scheme.name: torch.tensor(list(json.dumps(facts).encode()), dtype=torch.uint8)
    }


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def convert(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Turn a checkpoint of bitsandbytes into our tensors, and the keywords of `GraftQuantConfig` for them.

    state: key -> tensor, or what gives it by `[...]` (a safetensors slice). What is not packed passes
    untouched.
    """
    four = {key.partition(STATE)[0]: key for key in state if STATE in key}
    eight = [key.removesuffix(".SCB") for key in state if key.endswith(".SCB")]
    if not four and not eight:
        raise ModelError(
            "no bitsandbytes tensors (quant_state or SCB) in the checkpoint",
            "a checkpoint saved in 4 or 8 bits",
            "load it without quantization_config in config.json",
        )
    ours: dict[str, Any] = {}
    modules: dict[str, dict[str, Any]] = {}
    schemes = {key.partition(STATE)[2] for key in four.values()} | ({"int8"} if eight else set())
    if len(schemes) > 1:
        raise ModelError(
            f"a checkpoint that mixes {', '.join(sorted(schemes))}",
            "one scheme",
            "quantise the original model again",
        )
    for name in four:
        ours |= _four(name, state, four[name], modules)
    for name in eight:
        _check_rows(name, state)
        ours[f"{name}.codes"] = state[f"{name}.weight"][...]
        ours[f"{name}.absmax"] = state[f"{name}.SCB"][...].float().view(-1, 1)
        modules[name] = {}
    taken = (
        {name + ".weight" for name in modules}
        | {name + side for name in modules for side in SIDE}
        | set(four.values())
    )
    ours |= {key: value for key, value in state.items() if key not in taken}
    return ours, {"scheme": schemes.pop(), "modules": modules}


def _four(
    name: str, state: Mapping[str, Any], key: str, modules: dict[str, dict[str, Any]]
) -> dict[str, Tensor]:
    facts = json.loads(bytes(state[key][...].tolist()))
    codebook = CODEBOOKS.get(facts["quant_type"])
    levels = state[f"{name}.weight.quant_map"][...]
    if codebook is None or not _same(levels, codebook):
        raise ModelError(
            f"{name}: levels of {facts['quant_type']!r} that are not bitsandbytes' own",
            "nf4 or fp4",
            "quantise the original model again",
        )
    rows, columns = facts["shape"]
    block = math.gcd(columns, facts["blocksize"])
    if block < SMALLEST_BLOCK:
        raise ModelError(
            f"{name}: rows of {columns} weights in blocks of {facts['blocksize']} that cross rows",
            f"a row length that is a multiple of {SMALLEST_BLOCK}",
            "load the original 16-bit model with quant=, which keeps blocks inside rows",
        )
    tensors = {"codes": state[f"{name}.weight"][...].view(torch.uint8).view(rows, columns // 2)}
    absmax, nested = state[f"{name}.weight.absmax"][...], _nested(name, state, facts)
    repeat = facts["blocksize"] // block
    plain = repeat > 1 or (nested is not None and (nested.group != GROUP or not _same_map(name, state)))
    if nested is not None and not plain:
        tensors |= {"absmax": absmax, "nested_absmax": nested.absmax, "nested_offset": nested.offset}
    else:
        flat = fp32_absmax(Packed(tensors["codes"], absmax.flatten(), codebook, block, columns, nested))
        tensors["absmax"] = flat.repeat_interleave(repeat)[: rows * columns // block]
    tensors["absmax"] = tensors["absmax"].view(rows, columns // block)
    modules[name] = {"block": block, "double": "nested_absmax" in tensors}
    return {f"{name}.{part}": tensor for part, tensor in tensors.items()}


def _nested(name: str, state: Mapping[str, Any], facts: dict[str, Any]) -> Nested | None:
    if f"{name}.weight.nested_absmax" not in state:
        return None
    levels = state[f"{name}.weight.nested_quant_map"][...]
    book = SIGNED if _same(levels, SIGNED) else Codebook("nested", tuple(levels.tolist()))
    offset = torch.tensor([facts["nested_offset"]], dtype=torch.float32)
    return Nested(state[f"{name}.weight.nested_absmax"][...], offset, book, facts["nested_blocksize"])


def _same_map(name: str, state: Mapping[str, Any]) -> bool:
    return _same(state[f"{name}.weight.nested_quant_map"][...], SIGNED)


def _same(levels: Tensor, codebook: Codebook) -> bool:
    return torch.equal(levels.float(), codebook.levels(levels.device))


def _check_rows(name: str, state: Mapping[str, Any]) -> None:
    format_key = f"{name}.weight_format"
    if format_key in state and int(state[format_key][...]) != 0:
        raise ModelError(
            f"{name}: 8-bit weights in a layout for one kind of GPU",
            "weight_format row",
            "save it again with bitsandbytes 0.45 or later",
        )
