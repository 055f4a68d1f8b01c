"""AdamW over many tensors in one call, and the norm of many gradients, by the C kernels.

The definition is `graft.training.optimizers.AdamW`, which does without where these cannot work. Moments are
fp32, or codes of two 8-bit dynamic maps. A nearest level is found by arithmetic: those of a decade are
equally far from each other. At a midpoint it may be the upper one, where the reference takes the lower.
"""

import ctypes
import functools
import math
from collections.abc import Mapping, Sequence
from ctypes import c_double, c_int32, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from graft.kernels import native
from graft.kernels.packed import Codebook

TASK = 8192  # numbers, as in csrc/optimizer.h
DECADES = 7


class _Described(ctypes.Structure):
    """`graft_adamw_tensor` of csrc/optimizer.h."""

    _fields_ = (
        ("count", c_int64),
        ("parameter", c_void_p),
        ("m", c_void_p),
        ("v", c_void_p),
        ("m_absmax", c_void_p),
        ("v_absmax", c_void_p),
        ("low", c_void_p),
        ("master", c_void_p),
        ("dtype", c_int32),
        ("group", c_int32),
    )


class _Group(ctypes.Structure):
    """`graft_adamw_group`."""

    _fields_ = (("lr", c_double), ("weight_decay", c_double))


class _Map(ctypes.Structure):
    """`graft_dynamic`."""

    _fields_ = (
        *((name, ctypes.c_float * 8) for name in ("first", "step", "inverse", "shift", "last", "next")),
        ("one", ctypes.c_float),
    )


class AdamWTensors:
    """Parameters with their states, described once for as long as they lie where they are.

    parameters: contiguous.  states: of each "m" and "v", either may have an absmax ("m_absmax"), and "low" or
    "master".  groups: the index of each one's group.  maps: of the codes of m and of v.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        states: Sequence[Mapping[str, Tensor]],
        groups: Sequence[int],
        maps: tuple[Codebook, Codebook],
    ) -> None:
        self.places = [p.data_ptr() for p in parameters]
        described = [
            _Described(
                p.numel(),
                p.data_ptr(),
                *(
                    native.address(state.get(key))
                    for key in ("m", "v", "m_absmax", "v_absmax", "low", "master")
                ),
                native.DTYPES[p.dtype],
                group,
            )
            for p, state, group in zip(parameters, states, groups, strict=True)
        ]
        self._count = len(described)
        self._described = (_Described * self._count)(*described)
        self._tasks = (c_int64 * (self._count + 1))()
        self._maps = (_Map * 2)(*(_map(book) for book in maps))

    def step(
        self,
        gradients: Sequence[int | None],
        steps: Sequence[int],
        rates: Sequence[tuple[float, float]],
        betas: tuple[float, float],
        eps: float,
        clip: float,
    ) -> None:
        """Update all parameters that have a gradient.

        gradients: addresses of contiguous tensors of the parameters' dtypes; multiplied in place by `clip`.
        steps: the number of each one's update, from 1.  rates: (lr, weight_decay) of each group.
        """
        native.function("adamw")(
            self._described, c_int64(self._count), (c_void_p * self._count)(*gradients),
            (c_int64 * self._count)(*steps), (_Group * len(rates))(*(_Group(*rate) for rate in rates)),
            c_double(betas[0]), c_double(betas[1]), c_double(eps), c_double(clip), self._maps, self._tasks,
            torch.get_num_threads(),
        )  # fmt: skip


@functools.cache
def _map(book: Codebook) -> _Map:
    """Describe a dynamic map by its decades, whose levels are numbered as `graft_dynamic` has it."""
    midpoints = book.search(torch.device("cpu")).midpoints.tolist()
    zero = book.values.index(0.0)
    below = 0 if zero else 1  # the number of level 0
    made = _Map(one=midpoints[-2])
    made.shift[0] = made.last[0] = below
    made.next[0], made.next[DECADES] = midpoints[zero], math.inf
    for decade in range(1, DECADES + 1):
        low = (below + 1) * 2 ** (decade - 1)
        high = 2 * low - 1
        first, last = (book.values[zero + number - below] for number in (low, high))
        made.first[decade], made.last[decade] = first, high
        if high > low:
            made.step[decade] = (last - first) / (high - low)
            made.inverse[decade] = (high - low) / (last - first)
        made.shift[decade] = low - first * made.inverse[decade]
        if decade < DECADES:
            made.next[decade] = midpoints[zero + high - below]
    return made


def gradient_norm(gradients: Sequence[Tensor]) -> float:
    """Return the Euclidean norm of all gradients together, summed at least in fp32."""
    if not gradients or not native.usable(*gradients):
        return _norm_by_torch(gradients)
    held = [g.contiguous() for g in gradients]
    count, sizes = len(held), [g.numel() for g in held]
    sums = (c_double * sum(-(-size // TASK) for size in sizes))()
    run: Any = native.function("sum_of_squares")
    run.restype = c_double
    squares: float = run(
        (c_void_p * count)(*[g.data_ptr() for g in held]), (c_int64 * count)(*sizes),
        (c_int32 * count)(*[native.DTYPES[g.dtype] for g in held]), c_int64(count), (c_int64 * (count + 1))(),
        sums, torch.get_num_threads(),
    )  # fmt: skip
    return squares**0.5


def _norm_by_torch(gradients: Sequence[Tensor]) -> float:
    dtype = torch.float64 if any(g.dtype == torch.float64 for g in gradients) else torch.float32
    return float(torch.stack([torch.linalg.vector_norm(g, dtype=dtype) for g in gradients]).norm())
