"""Choose the number format of a base that is given none: `dtype: auto`.

    GRAFT_DTYPE    bf16 or fp32, if this variable of the environment says so
    GPU            bf16 where its cores compute in it, else fp32
    processor      bf16 if products are at least AHEAD times as fast in it as in fp32 (`kernels.measure`),
                   else fp32; never fp16, whose gradients overflow

fp32 takes twice the memory of bf16. Where only bf16 fits, it is taken although it is slower: `fitting` sees
to that for a base that is loaded, `planning.dtype` for a run.
"""

import copy
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_utils import PreTrainedModel

from graft.errors import notice, one_of
from graft.kernels import measure
from graft.models.files import ModelFiles
from graft.quant.replace import matrix, packable, packable_experts
from graft.sizes import free_memory, size

AUTO = "auto"
VARIABLE = "GRAFT_DTYPE"
AHEAD = 1.15  # what bf16 must be ahead by: it keeps three digits where fp32 keeps seven
FORMATS = ("bf16", "fp32")
ROOM = 0.8  # share of the free memory that weights may take: activations need some too
SIXTEEN = {"BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class Choice:
    """A number format.  why: in words.  free: nobody has asked for it, so memory may still change it."""

    dtype: str
    why: str
    free: bool = True

    def __str__(self) -> str:
        return f"{self.dtype}: {self.why}"


def choose(device_type: str) -> Choice:
    """Return the number format that is best on a device of this type ("cpu", "cuda").

    The first call on a machine may measure for a second. Raises UsageError for a GRAFT_DTYPE that is none.
    """
    if asked := os.environ.get(VARIABLE):
        return Choice(one_of(VARIABLE, asked, FORMATS), f"as {VARIABLE} says", free=False)
    if device_type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
        return Choice("bf16", "the GPU computes in it") if able else Choice("fp32", "the GPU has no bf16")
    if device_type != "cpu":
        return Choice("bf16", f"not measured on {device_type}")
    rates = measure.profile().products
    return by_rates(rates["fp32"], rates["bf16"])


def by_rates(fp32: float, bf16: float) -> Choice:
    """Return the choice between two FLOP/s.

    >>> str(by_rates(fp32=141e9, bf16=21e9))
    'fp32: products 141 GFLOP/s, bf16 21 (measured on this machine)'
    >>> by_rates(fp32=100e9, bf16=114e9).dtype
    'fp32'
    """
    rates = {"bf16": bf16, "fp32": fp32} if bf16 >= AHEAD * fp32 else {"fp32": fp32, "bf16": bf16}
    (dtype, rate), (other, slower) = rates.items()
    words = f"products {rate / 1e9:.3g} GFLOP/s, {other} {slower / 1e9:.3g} (measured on this machine)"
    return Choice(dtype, words)


def fitting(cls: type[PreTrainedModel], opened: ModelFiles, device_type: str) -> str:
    """Return the number format for a model that is to be loaded: the fastest of those that fit.

    A Notice says so if that is not the fastest.
    """
    choice = choose(device_type)
    free = free_memory() if device_type == "cpu" else None
    if choice.dtype != "fp32" or not choice.free or free is None:
        return choice.dtype
    needed = 4 * sum(_numbers(tensor) for tensor in opened.state.values())
    if needed > ROOM * free and opened.quantisation is not None:
        needed = _packed_bytes(cls, opened)
    if needed <= ROOM * free:
        return "fp32"
    notice(
        f"the base computes in bf16, though fp32 is faster here: its weights would take {size(needed)}, and "
        f"{size(free)} of memory are free"
    )
    return "bf16"


def _numbers(tensor: Any) -> int:
    """Count the numbers of a tensor, or of a slice of a file."""
    shape: Sequence[int] = tensor.get_shape() if hasattr(tensor, "get_shape") else tensor.shape
    return math.prod(shape)


def _packed_bytes(cls: type[PreTrainedModel], opened: ModelFiles) -> int:
    """Return the bytes of a packed model whose other weights are in fp32."""
    with torch.device("meta"):
        model: Any = cls(copy.deepcopy(opened.config))
    inside = sum(matrix(module).numel() for _, module in packable(model))
    inside += sum(getattr(module, name).numel() for module, name in packable_experts(model).values())
    bits = opened.quantisation.kind().bits if opened.quantisation is not None else 32
    return round(4 * (sum(p.numel() for p in model.parameters()) - inside) + bits / 8 * inside)


def file_dtype(opened: ModelFiles, chosen: torch.dtype) -> torch.dtype | None:
    """Return the dtype in which a base is exported that computes in `chosen`, which nobody asked for.

    It is that of the files; but packed weights, whose values need no 32 bits, are written in 16. None: in
    `chosen`.
    """
    if chosen != torch.float32:
        return None
    stored: Any = opened.config.dtype
    if stored is None:
        largest = max(opened.state.values(), key=_numbers)
        stored = _in_file(largest)
    if stored in (torch.bfloat16, torch.float16):
        return torch.bfloat16 if stored == torch.bfloat16 else torch.float16
    return torch.bfloat16 if opened.quantisation is not None else None


def stored_dtype(opened: ModelFiles) -> torch.dtype | None:
    """Return the 16-bit dtype that all tensors of the files have, if there is one."""
    found = {
        SIXTEEN.get(str(t.get_dtype())) if hasattr(t, "get_dtype") else None for t in opened.state.values()
    }
    return found.pop() if len(found) == 1 else None


def rounded(opened: ModelFiles, chosen: torch.dtype) -> bool:
    """Return whether samples of the weights in `chosen` may differ from those of the model before it.

    Samples are in bf16: a GGUF file holds other numbers, unless it has bf16 or fp32; and fp16 rounds what is
    stored in fp32 in another place than bf16 does.
    """
    forms = {tensor.form for tensor in opened.state.values() if hasattr(tensor, "form")}
    narrowed = chosen == torch.float16 and stored_dtype(opened) is None
    return not forms <= {"f32", "bf16"} or narrowed


def _in_file(tensor: Any) -> torch.dtype | None:
    """Return the 16-bit dtype of a tensor of a file; bf16 for blocks of a GGUF file, None for 32 bits."""
    if hasattr(tensor, "form"):
        return None if tensor.form == "f32" else SIXTEEN.get(str(tensor.form).upper(), torch.bfloat16)
    return SIXTEEN.get(str(tensor.get_dtype())) if hasattr(tensor, "get_dtype") else None
