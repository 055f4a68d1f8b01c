"""The library of C kernels in csrc/: which levels of instructions run here, and how its functions are called.

    reference < portable < avx2 < avx512 < avx512_bf16 < amx

The best level that this processor can run is used. GRAFT_KERNELS=avx2 in the environment, or `at_level`,
forces a lower one; "reference" switches the library off. GRAFT_KERNELS_LIBRARY names another file, such as
one that was built with sanitizers. Without a C compiler at the installation there is no
library, and torch's references do all the work.

torch must be loaded before the library: both then share one OpenMP runtime and its threads.
"""

import contextlib
import ctypes
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from graft.errors import one_of
from graft.kernels.packed import Grouped, Packed

LIBRARY = Path(os.environ.get("GRAFT_KERNELS_LIBRARY") or Path(__file__).with_name("libgraft.so.1"))
LEVELS = ("portable", "avx2", "avx512", "avx512_bf16", "amx")  # as bits of graft_levels()
IN_PAIRS = LEVELS[3:]  # that multiply bf16 in pairs
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
LARGE = 1 << 23  # multiplications of a product from which a call costs nothing beside them
FP32, BF16, FP16, LEVELS4, INT8, GROUPS = range(6)  # kinds of weights
_forced: list[str] = []
# Returns FLOP/s of torch's products by number format; `graft.kernels` puts it here, since it is measured with
# these kernels.
measured: list[Callable[[], dict[str, float]]] = []
# Told of (kind, count) of what calls on fake tensors leave out: multiplications with additions of a "product"
# or of "attention", weights that are "decoded". A plan counts them.
listening: list[Callable[[str, float], None]] = []


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the loaded library, or None if it was not built."""
    try:
        return ctypes.CDLL(str(LIBRARY))
    except OSError:
        return None


@functools.cache
def levels() -> tuple[str, ...]:
    """Return the levels that can run here, the lowest first; none without the library."""
    loaded = library()
    bits = 0 if loaded is None else loaded.graft_levels()
    return tuple(name for bit, name in enumerate(LEVELS) if bits >> bit & 1)


def level() -> str:
    """Return the level in force: "reference" if the library is missing or switched off."""
    return _forced[-1] if _forced else _chosen()


@functools.cache
def _chosen() -> str:
    known = ("reference", *levels())
    wanted = os.environ.get("GRAFT_KERNELS", "")
    return one_of("GRAFT_KERNELS", wanted, known) if wanted else known[-1]


@contextlib.contextmanager
def at_level(name: str) -> Iterator[None]:
    """Run this level inside the block."""
    _forced.append(one_of("level of kernels", name, ("reference", *levels())))
    try:
        yield
    finally:
        _forced.pop()


def function(name: str) -> Callable[..., Any]:
    """Return a C function at the level in force. Its arguments are ctypes' own, or `int` of 32 bits."""
    return _function(name, level())


def product_function(name: str, dtype: torch.dtype) -> Callable[..., Any]:
    """Return a C function that multiplies x of this format, at the level that does it fastest.

    Where bf16 is slow, that is one without pairs. The sizes of AMX's tiles suit no other format.
    """
    chosen = level()
    if dtype != torch.bfloat16:
        chosen = "avx512_bf16" if chosen == "amx" else chosen
    elif chosen in IN_PAIRS and not _bf16_is_faster():
        chosen = "avx512"
    return _function(name, chosen)


@functools.cache
def _function(name: str, of_level: str) -> Callable[..., Any]:
    found: Any = getattr(library(), f"graft_{name}_{of_level}")
    return found


def usable(*tensors: Tensor | None) -> bool:
    """Return whether the kernels can work on these: a level is in force, and they are numbers in memory here.

    Fake tensors of the planner and the compiler, and tensors of other devices or number formats, are left
    to the reference.
    """
    return level() != "reference" and all(t is None or (plain(t) and t.dtype in DTYPES) for t in tensors)


def shaped(*tensors: Tensor | None) -> bool:
    """Return whether the kernels could work on these if those that are fake were real.

    An operation that asks this holds for a plan what it holds in a run, and writes nothing if a tensor is not
    `plain`.
    """
    real = [t for t in tensors if type(t) is not FakeTensor or t.device.type != "cpu"]
    return usable(*real) and all(t is None or t.dtype in DTYPES for t in tensors)


def plain(tensor: Tensor) -> bool:
    """Return whether a tensor has memory of its own on the processor: it is no fake and no other subclass."""
    return type(tensor) in (Tensor, torch.nn.Parameter) and tensor.device.type == "cpu"


def left_out(kind: str, count: float) -> None:
    """Tell a plan what a call on fake tensors leaves out.  kind: see `listening`."""
    for told in listening:
        told(kind, count)


def by_torch(dtype: torch.dtype) -> bool:
    """Return whether torch multiplies this format faster than the kernels, which sum in fp32.

    It does where the processor has instructions for 16-bit products and they are as fast as they should be.
    """
    if dtype != torch.bfloat16 or level() not in (*IN_PAIRS, "reference"):
        return False
    return level() == "reference" or _bf16_is_faster()


def packed_by_torch(dtype: torch.dtype) -> bool:
    """Return whether torch multiplies x of this format with a decoded weight faster than the kernels do.

    It does by AMX at a level of kernels that does not use that. Else they multiply pairs of bf16 as fast as
    torch, and decode into the caches on the way.
    """
    return by_torch(dtype) and level() != "amx" and torch.cpu._is_amx_tile_supported()


def plain_by_torch(x: Tensor, weight: Tensor) -> bool:
    """Return whether torch multiplies x with a plain weight (out, in) of its dtype, instead of the kernels.

    It does, but for large products where the kernels are as fast as torch's library and add an update in the
    same pass: of fp32 on processors with AVX2 alone, of bf16 in pairs. With or without an update the answer
    is the same, so that an update of 0 changes no bit.
    """
    large = x.numel() // x.shape[-1] * weight.numel() >= LARGE
    if x.dtype == torch.float32:
        return level() != "avx2" or not large
    return by_torch(x.dtype) and (packed_by_torch(x.dtype) or not large)


@functools.cache
def _bf16_is_faster() -> bool:
    rates = measured[0]()
    return rates["bf16"] > rates["fp32"]


class Weight(ctypes.Structure):
    """`graft_weight` of csrc/graft.h."""

    _fields_ = (
        ("kind", ctypes.c_int32),
        ("bits", ctypes.c_int32),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("block", ctypes.c_int64),
        ("codes", ctypes.c_void_p),
        ("absmax", ctypes.c_void_p),
        ("levels", ctypes.c_void_p),
        ("nested_levels", ctypes.c_void_p),
        ("nested_absmax", ctypes.c_void_p),
        ("nested_group", ctypes.c_int64),
        ("nested_offset", ctypes.c_float),
        ("scale", ctypes.c_void_p),
        ("minimum", ctypes.c_void_p),
        ("tiled", ctypes.c_int64),
    )


class Term(ctypes.Structure):
    """`graft_term` of csrc/graft.h."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
        ("across", ctypes.c_int32),
        ("stride", ctypes.c_int64),
        ("step", ctypes.c_int64),
        ("scale", ctypes.c_float),
        ("weight", ctypes.POINTER(Weight)),
    )
    held: Tensor


def weight(of: Packed | Grouped | Tensor) -> Weight:
    """Describe a weight (rows, columns) for C. Its tensors must be contiguous, and outlive the call."""
    if isinstance(of, Tensor):
        rows, columns = of.shape
        return Weight(DTYPES[of.dtype], 0, rows, columns, 0, of.data_ptr())
    codes, rows = of.codes.data_ptr(), len(of.codes)
    if isinstance(of, Grouped):
        constants = of.scale.data_ptr(), of.minimum.data_ptr()
        return Weight(GROUPS, of.bits, rows, of.columns, of.block, codes, 0, 0, 0, 0, 0, 0.0, *constants)
    absmax, cpu = of.absmax.data_ptr(), of.codes.device
    if of.codebook is None:
        return Weight(INT8, 8, rows, of.columns, 0, codes, absmax)
    levels4 = of.codebook.levels(cpu).data_ptr()
    if of.nested is None:
        tiled = of.absmax.dim() == 3
        return Weight(LEVELS4, 4, rows, of.columns, of.block, codes, absmax, levels4, tiled=tiled)
    nested = of.nested
    book = nested.codebook.levels(cpu).data_ptr()
    return Weight(
        LEVELS4, 4, rows, of.columns, of.block, codes, absmax, levels4,
        book, nested.absmax.data_ptr(), nested.group, nested.offset.item(),
    )  # fmt: skip


def address(tensor: Tensor | None) -> ctypes.c_void_p | None:
    """Return where a contiguous tensor lies; NULL for None."""
    return None if tensor is None else ctypes.c_void_p(tensor.data_ptr())


def rows(x: Tensor) -> Tensor:
    """Return x (..., n) as contiguous rows (m, n)."""
    return x.reshape(-1, x.shape[-1]).contiguous()


def term(x: Tensor, of: Weight, *, across: bool = False, scale: float = 1.0) -> Term:
    """Describe scale · x Wᵀ, or scale · x W if `across`, for `product`.  x: (m, inner)."""
    made = Term(x.data_ptr(), DTYPES[x.dtype], across, *x.stride(), scale, ctypes.pointer(of))
    made.held = x  # a copy lives as long as its address is used
    return made


def product(terms: list[Term], out: Tensor, bias: Tensor | None = None) -> Tensor:
    """Write the sum of terms, plus a bias (n,) in fp32, into out (m, n) of any of `DTYPES`, and return it."""
    m, n = out.shape
    failed = product_function("product", out.dtype)(
        (Term * len(terms))(*terms), len(terms), ctypes.c_int64(m), ctypes.c_int64(n),
        address(bias), address(out), DTYPES[out.dtype], ctypes.c_int64(n), torch.get_num_threads(),
    )  # fmt: skip
    if failed:
        raise MemoryError(f"no scratch memory for a product of ({m}, {n})")
    return out
