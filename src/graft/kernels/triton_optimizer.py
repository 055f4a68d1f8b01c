"""AdamW over one tensor on a GPU, in Triton: moments in fp32 or 8 bits, in one pass over all that it has.

    m ← m + (1 − β₁)(g − m)        v ← β₂ v + (1 − β₂) g²
    θ ← θ (1 − η λ) − η / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)

The definition is `graft.training.optimizers.AdamW`. Codes of 8 bits are exactly the nearest levels: the upper
half of a number names an interval with one midpoint at most (`Codebook.search`).
"""

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from graft.kernels.packed import Codebook

BLOCK = 256  # values that share one scale
BLOCKS = 4  # that a program updates
PLAIN, HALVES, MASTER = range(3)  # the fp32 weight is the parameter, a bf16 with its lower half, or a copy


@triton.jit
def _weight(parameter, other, place, live, KIND: tl.constexpr):
    if KIND == 0:
        w = tl.load(parameter + place, mask=live, other=0.0)
    elif KIND == 2:
        w = tl.load(other + place, mask=live, other=0.0)
    else:
        high = tl.load(parameter + place, mask=live, other=0).to(tl.int32)
        low = tl.load(other + place, mask=live, other=0).to(tl.int32)
        w = ((high << 16) + low).to(tl.float32, bitcast=True)
    return w


@triton.jit
def _put_weight(parameter, other, place, live, w, KIND: tl.constexpr):
    if KIND == 0:
        tl.store(parameter + place, w, mask=live)
    elif KIND == 2:
        tl.store(other + place, w, mask=live)
        tl.store(parameter + place, w.to(parameter.dtype.element_ty), mask=live)
    else:
        bits = w.to(tl.int32, bitcast=True)
        high = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # the nearest bf16, ties to even
        high = tl.where(w == w, high, 0x7FC0)
        lost = bits - (high << 16)
        lost = tl.where(w == w, tl.minimum(lost, 32767), 0)  # a tie that was rounded down gives one step up
        tl.store(parameter + place, high.to(tl.int16), mask=live)
        tl.store(other + place, lost.to(tl.int16), mask=live)


@triton.jit
def _state(codes, absmax, levels, place, live, block, exists, BITS8: tl.constexpr):
    if BITS8:
        level = tl.load(levels + tl.load(codes + place, mask=live, other=0).to(tl.int32))
        x = level * tl.load(absmax + block, mask=exists, other=0.0)
    else:
        x = tl.load(codes + place, mask=live, other=0.0)
    return x


@triton.jit
def _put_state(codes, absmax, start, midpoints, place, live, block, exists, x, BITS8: tl.constexpr):
    if BITS8:
        x = tl.where(live, x, 0.0)
        most = tl.max(tl.abs(x), 1)
        most = tl.where(tl.sum((x != x).to(tl.int32), 1) > 0, float("nan"), most)
        # A NaN fails the comparison and stays, as torch's clamp leaves it.
        guarded = tl.where(most < 1e-38, 1e-38, most)
        inverse = tl.div_rn(tl.full(most.shape, 1.0, tl.float32), guarded)
        scaled = tl.minimum(tl.maximum(x * inverse[:, None], -1.0), 1.0)
        below = tl.load(start + ((scaled.to(tl.int32, bitcast=True) >> 16) + 32768)).to(tl.int32)
        code = below + (scaled > tl.load(midpoints + below)).to(tl.int32)
        tl.store(codes + place, code.to(tl.uint8), mask=live)
        tl.store(absmax + block, most[:, None], mask=exists)
    else:
        tl.store(codes + place, x, mask=live)


@triton.jit
def _adamw(
    parameter, other, gradient, m, v, m_absmax, v_absmax, m_levels, v_levels, m_start, v_start, m_midpoints,
    v_midpoints, count, mix1, keep2, mix2, keep_weight, rate, root, eps, clip,
    KIND: tl.constexpr, BITS8: tl.constexpr, CLIPPED: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    block = (tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS))[:, None]
    place = block * BLOCK + tl.arange(0, BLOCK)[None, :]
    exists = block * BLOCK < count
    live = place < count
    g = tl.load(gradient + place, mask=live, other=0.0)
    if CLIPPED:
        g = (g.to(tl.float32) * clip).to(gradient.dtype.element_ty)
        tl.store(gradient + place, g, mask=live)
    g = g.to(tl.float32)
    mean = _state(m, m_absmax, m_levels, place, live, block, exists, BITS8)
    square = _state(v, v_absmax, v_levels, place, live, block, exists, BITS8)
    mean += mix1 * (g - mean)
    square = square * keep2 + mix2 * g * g
    w = _weight(parameter, other, place, live, KIND) * keep_weight
    w += rate * tl.div_rn(mean, tl.sqrt_rn(square) * root + eps)
    _put_weight(parameter, other, place, live, w, KIND)
    _put_state(m, m_absmax, m_start, m_midpoints, place, live, block, exists, mean, BITS8)
    _put_state(v, v_absmax, v_start, v_midpoints, place, live, block, exists, square, BITS8)


def adamw(
    parameter: Tensor,
    gradient: Tensor,
    state: Mapping[str, Tensor],
    step: int,
    rates: tuple[float, float],
    betas: tuple[float, float],
    eps: float,
    clip: float,
    maps: tuple[Codebook, Codebook],
) -> None:
    """Update a parameter, contiguous, and its state in place.

    gradient: contiguous, of the parameter's dtype; multiplied in place by `clip`.
    state: "m" and "v", in fp32, or codes with "m_absmax" and "v_absmax"; "low" (int16) beside a bf16
    parameter, or "master" (fp32).
    step: the number of this update, from 1.  rates: (lr, weight_decay).  maps: of the codes of m and of v.
    """
    count, eight = parameter.numel(), "m_absmax" in state
    kind = HALVES if "low" in state else MASTER if "master" in state else PLAIN
    other = state["low"] if kind == HALVES else state.get("master", parameter)
    spare = parameter  # where an argument is not read
    tables = [spare] * 6
    if eight:
        searches = [book.search(parameter.device) for book in maps]
        tables = [
            *(book.levels(parameter.device) for book in maps),
            *(search.start for search in searches),
            *(search.midpoints for search in searches),
        ]
    (lr, decay), (beta1, beta2) = rates, betas
    if count == 0:
        return
    _adamw[(triton.cdiv(count, BLOCK * BLOCKS),)](
        parameter.view(torch.int16) if kind == HALVES else parameter, other, gradient, state["m"], state["v"],
        state.get("m_absmax", spare), state.get("v_absmax", spare), *tables, count, 1 - beta1, beta2,
        1 - beta2, 1 - lr * decay, -lr / (1 - beta1**step), (1 - beta2**step) ** -0.5, eps, clip, KIND=kind,
        BITS8=eight, CLIPPED=clip != 1, BLOCKS=BLOCKS, BLOCK=BLOCK, enable_fp_fusion=False,
    )  # fmt: skip
