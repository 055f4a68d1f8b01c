"""Log-probabilities of tokens from logits on a GPU, in Triton; the gradient takes the logits' place.

    z = cap tanh(scale x / cap), or scale x        log p = z[label] − log Σ exp z
    d log p / dx = (onehot − softmax z) · dz/dx

A program reads a row twice: for the largest logit and the sum, which it keeps up to date as it goes, and for
the gradient. Hsu et al. 2024, Liger Kernel, arXiv 2410.10989, section 3.2.
"""

import triton
import triton.language as tl
from torch import Tensor

SIZE = 4096  # logits that a program holds at a time


@triton.jit
def _scaled(x, scale, cap, CAPPED: tl.constexpr):
    """Return z and dz/dx."""
    z = x.to(tl.float32) * scale
    slope = scale
    if CAPPED:
        t = 2 * tl.sigmoid(2 * z / cap) - 1  # tanh
        z = cap * t
        slope = scale * (1 - t * t)
    return z, slope


@triton.jit
def _token_logprobs(
    logits, labels, logprobs, hits, vocabulary, scale, cap,
    CAPPED: tl.constexpr, WANTED: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    start = logits + row.to(tl.int64) * vocabulary
    label = tl.load(labels + row)
    live = label != -100
    known = live & (label >= 0) & (label < vocabulary)
    # Before any gradient is written: the sums below wait for all threads of the program.
    mine, _mine = _scaled(tl.load(start + label, mask=known, other=float("nan")), scale, cap, CAPPED)
    most = tl.full([], float("-inf"), tl.float32)
    total = tl.zeros([], tl.float32)
    best = tl.zeros([], tl.int32)
    for first in range(0, vocabulary, SIZE):
        column = first + tl.arange(0, SIZE)
        z, _slope = _scaled(tl.load(start + column, mask=column < vocabulary, other=0.0), scale, cap, CAPPED)
        z = tl.where(column < vocabulary, z, float("-inf"))
        largest = tl.max(z, 0)
        place = tl.min(tl.where(z == largest, column, vocabulary), 0)
        best = tl.where(largest > most, place, best)
        above = tl.maximum(most, largest)
        total = total * tl.exp(most - above) + tl.sum(tl.exp(z - above), 0)
        most = above
    logs = most + tl.log(total)
    tl.store(logprobs + row, tl.where(live, mine - logs, 0.0))
    tl.store(hits + row, live & (best == label))
    if WANTED:
        for first in range(0, vocabulary, SIZE):
            column = first + tl.arange(0, SIZE)
            inside = column < vocabulary
            z, slope = _scaled(tl.load(start + column, mask=inside, other=0.0), scale, cap, CAPPED)
            d = (tl.where(column == label, 1.0, 0.0) - tl.exp(z - logs)) * slope
            d = tl.where(live, d, 0.0)
            tl.store(start + column, d.to(logits.dtype.element_ty), mask=inside)


def token_logprobs(
    logits: Tensor, labels: Tensor, logprobs: Tensor, hits: Tensor, *, scale: float, cap: float, wanted: bool
) -> None:
    """Write the log-probabilities (N,) fp32 of labels (N,) int64, and whether they are the first largest.

    logits: (N, V), contiguous; if the gradient is `wanted` they become d log p / d logits.  hits: (N,) bool.
    cap: 0 means none.
    A row with the label -100 gets 0, False and no gradient; any other label that is no column gets NaN,
    because an error would have to wait for the device.
    """
    if len(logits):
        _token_logprobs[(len(logits),)](
            logits, labels, logprobs, hits, logits.shape[1], float(scale), float(cap or 1.0),
            CAPPED=cap != 0, WANTED=wanted, SIZE=min(SIZE, triton.next_power_of_2(logits.shape[1])),
            num_warps=8, enable_fp_fusion=True,
        )  # fmt: skip
