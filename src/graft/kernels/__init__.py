"""The few hot operations, by name: a torch reference defines each; faster kernels are chosen at run time.

    find_nearest      fp32 in [−1, 1] -> codes of the nearest levels
    quantise_blocks   (rows, n) -> codes, absmax                  8-bit states of optimizers
    dequantise_blocks the way back
    quantise_4bit     (out, in) -> packed codes, absmax
    quantise_int8     (out, in) -> codes, absmax
    dequantise        Packed -> (out, in)
    linear            x Ŵᵀ + b on packed Ŵ
    linear_backward   dy Ŵ
    pack, unpack      nibbles <-> bytes
    quantise_groups   (out, in) -> packed codes, scale, minimum
    dequantise_groups, linear_groups, linear_backward_groups, pack_bits, unpack_bits: the same for Grouped

A backend without a kernel for an operation leaves it to the reference. On the processor the kernels are those
of csrc/ (see `native`); on a GPU they are Triton's or bitsandbytes' (see `gpu`).
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from graft.kernels import gpu, groups, measure, native, native_packed, reference
from graft.kernels.packed import Codebook, Grouped, Nested, Packed

__all__ = ["REFERENCE", "Codebook", "Grouped", "Nested", "Packed", "find", "only_reference", "register"]

Kernel = Callable[..., Any]

REFERENCE: dict[str, Kernel] = {
    name: getattr(part, name) for part in (reference, groups) for name in part.__all__
}
_kernels: dict[str, dict[str, Kernel]] = {name: {"reference": kernel} for name, kernel in REFERENCE.items()}
for name in native_packed.__all__:
    _kernels[name]["cpu"] = getattr(native_packed, name)
if gpu.installed():
    for name in gpu.__all__:
        _kernels[name]["cuda"] = getattr(gpu, name)
native.measured.append(lambda: measure.profile().products)
_forced: list[str] = []


def register(operation: str, backend: str, kernel: Kernel) -> None:
    """Offer `kernel` for `operation` on tensors of device type `backend` ("cpu", "cuda")."""
    if operation not in _kernels:
        raise ValueError(f"no operation {operation!r} among {', '.join(_kernels)}")
    _kernels[operation][backend] = kernel


def find(operation: str, device_type: str) -> Kernel:
    """Return the fastest kernel of `operation` for tensors on a device of this type."""
    offered = _kernels[operation]
    return offered["reference"] if _forced else offered.get(device_type, offered["reference"])


@contextlib.contextmanager
def only_reference() -> Iterator[None]:
    """Use the torch reference for every operation inside the block, as an oracle, or to doubt a kernel."""
    _forced.append("reference")
    try:
        yield
    finally:
        _forced.pop()
