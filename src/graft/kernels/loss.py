"""Log-probabilities of tokens under a frozen language head, whose logits never exist as a whole.

    x = W h + b      z = cap tanh(scale x / cap), or scale x      log p = z[label] - log sum exp z
    d log p / dh = ((onehot - softmax z) dz/dx) W

Rows go through the head a chunk at a time. Where a gradient is wanted, a chunk's logits become the gradient
with respect to them, in their own memory, and that of h follows at once: the head does not run again in
backward, which multiplies each row by the gradient of its log-probability. Hsu et al. 2024, Liger Kernel,
arXiv 2410.10989, does the same for the mean loss.
"""

import ctypes
from ctypes import c_float, c_int64
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from graft.kernels import gpu, native
from graft.kernels.native import address

NO_LABEL = -100
LOGITS = 31 << 20  # bytes of a chunk; glibc gives larger blocks back to the system after every use
LOGITS_GPU = 1 << 28  # the same on a GPU, whose products want many rows
TILE = 12  # rows: a multiple of every level's tile
FEWEST, MOST = 120, 1020  # rows of a chunk
GRAIN = 128  # torch: a chunk is padded to a multiple: every new shape costs a compiled kernel


class Head(NamedTuple):
    """A frozen language head, and what its model does behind it.

    weight: (V, D).  bias: (V,) or None.  scale: of the logits.  cap: no logit gets larger; 0: no limit.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    cap: float = 0.0

    def at(self, temperature: float) -> "Head":
        """Return the head whose logits are divided by a temperature."""
        return self._replace(scale=self.scale / temperature, cap=self.cap / temperature)


def token_logprobs(hidden: Tensor, head: Head, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-probability of each row's label, and whether the label is the most probable one.

    hidden: (N, D), of the head's dtype.  labels: (N,); rows with -100 get 0 and False.
    Returns (N,) in fp32 (fp64 for fp64), with a gradient for `hidden` of first order; and (N,) bool.
    Raises IndexError for a label that is no row of the head.
    """
    hidden = hidden if torch.is_grad_enabled() else hidden.detach()
    logprobs, hits = _TokenLogprobs.apply(hidden, labels, *head)
    return logprobs, hits


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        labels: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: float,
        cap: float,
    ) -> tuple[Tensor, Tensor]:
        head = Head(weight, bias, scale, cap)
        run = _native if native.usable(hidden, weight, bias) else _reference
        if gpu.fits(hidden, weight, bias) and gpu.usable(labels):
            run = _on_gpu
        if isinstance(hidden, FakeTensor) and native.shaped(hidden):
            run = _sketched
        logprobs, hits, slope = run(hidden.detach(), head, labels, ctx.needs_input_grad[0])
        if slope is not None:
            ctx.save_for_backward(slope)
        ctx.mark_non_differentiable(hits)
        return logprobs, hits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return slope * gradient[:, None].to(slope.dtype), None, None, None, None, None


def chunk_rows(rows: int, vocabulary: int) -> int:
    """Return how many of these rows have logits at one time."""
    most = max(FEWEST, min(MOST, LOGITS // (4 * vocabulary)))
    chunks = max(1, -(-rows // most))
    return max(1, -(-rows // (chunks * TILE))) * TILE  # equal ones


def _sketched(
    hidden: Tensor, head: Head, labels: Tensor, wanted: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Hold the memory that the kernels would hold, for those who plan with fake tensors."""
    native.left_out("product", (1 + wanted) * hidden.numel() * len(head.weight))
    logprobs, hits, slope, _ = _room(hidden, head, wanted)
    return logprobs, hits, slope


def _room(hidden: Tensor, head: Head, wanted: bool) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Return memory for log-probabilities, hits, the gradient if it is wanted, and a chunk's logits."""
    count, vocabulary = len(hidden), len(head.weight)
    dtype = hidden.dtype if native.by_torch(hidden.dtype) else torch.float32
    return (
        torch.empty(count, dtype=torch.float32, device="cpu"),
        torch.empty(count, dtype=torch.bool, device="cpu"),
        torch.empty(hidden.shape, dtype=hidden.dtype, device="cpu") if wanted else None,
        torch.empty(min(chunk_rows(count, vocabulary), count), vocabulary, dtype=dtype, device="cpu"),
    )


def _native(hidden: Tensor, head: Head, labels: Tensor, wanted: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    hidden, weight, labels = hidden.contiguous(), head.weight.contiguous(), labels.contiguous().long()
    logprobs, hits, slope, buffer = _room(hidden, head, wanted)
    count, step, dtype = len(hidden), max(len(buffer), 1), buffer.dtype
    by_torch = dtype != torch.float32
    described = native.weight(weight)
    bias = None if head.bias is None else head.bias.to(dtype)
    for start in range(0, count, step):
        part = slice(start, start + step)
        x = hidden[part]
        logits = buffer[: len(x)]
        if by_torch:
            torch.mm(x, weight.T, out=logits)
            logits = logits if bias is None else logits.add_(bias)
        else:
            native.product([native.term(x, described)], logits, bias)
        _score(logits, head, labels[part], wanted, logprobs[part], hits[part])
        if slope is None:
            continue
        if by_torch:
            torch.mm(logits, weight, out=slope[part])
        else:
            _product_across(logits, described, slope[part])
    return logprobs, hits, slope


def _score(logits: Tensor, head: Head, labels: Tensor, wanted: bool, logprobs: Tensor, hits: Tensor) -> None:
    """Write what a chunk's labels score; put the gradient in the place of its logits if it is wanted."""
    failed = native.function("token_logprobs")(
        address(logits), native.DTYPES[logits.dtype], c_int64(len(logits)), c_int64(logits.shape[1]),
        c_float(head.scale), c_float(head.cap), address(labels), int(wanted), address(logprobs),
        address(hits), torch.get_num_threads(),
    )  # fmt: skip
    if failed:
        raise IndexError(
            f"labels from {int(labels.min())} to {int(labels.max())} for {len(head.weight)} logits"
        )


def _product_across(x: Tensor, weight: native.Weight, out: Tensor) -> None:
    """Write x W into `out`, for a weight of many more rows than columns."""
    failed = native.product_function("product_across", x.dtype)(
        address(x), native.DTYPES[x.dtype], c_int64(len(x)), ctypes.byref(weight), address(out),
        native.DTYPES[out.dtype], torch.get_num_threads(),
    )  # fmt: skip
    if failed:
        raise MemoryError(f"no scratch memory for a product of {tuple(out.shape)}")


def _on_gpu(hidden: Tensor, head: Head, labels: Tensor, wanted: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Do the same by torch's products and a kernel between them. A label that is no row gives NaN."""
    count, labels = len(hidden), labels.contiguous().long()
    logprobs = torch.empty(count, dtype=torch.float32, device=hidden.device)
    hits = torch.empty(count, dtype=torch.bool, device=hidden.device)
    slope = torch.empty(hidden.shape, dtype=hidden.dtype, device=hidden.device) if wanted else None
    step = max(1, LOGITS_GPU // (len(head.weight) * hidden.element_size()))
    for start in range(0, count, step):
        part = slice(start, start + step)
        logits = F.linear(hidden[part], head.weight, head.bias)
        gpu.token_logprobs(
            logits, labels[part], logprobs[part], hits[part], scale=head.scale, cap=head.cap, wanted=wanted
        )
        if slope is not None:
            torch.mm(logits, head.weight, out=slope[part])
    return logprobs, hits, slope


def _reference(
    hidden: Tensor, head: Head, labels: Tensor, wanted: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    count = len(hidden)
    hidden = F.pad(hidden, (0, 0, 0, -count % GRAIN))
    labels = F.pad(labels, (0, -count % GRAIN), value=NO_LABEL)
    step = -(-chunk_rows(count, len(head.weight)) // GRAIN) * GRAIN
    parts = [
        _chunk(x, head, wanted_labels, wanted)
        for x, wanted_labels in zip(hidden.split(step), labels.split(step), strict=True)
    ]
    logprobs, hits = (torch.cat([part[i] for part in parts])[:count] for i in (0, 1))
    return logprobs, hits, torch.cat([part[2] for part in parts])[:count] if wanted else None


def _chunk(x: Tensor, head: Head, labels: Tensor, wanted: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probabilities, hits and the gradient with respect to x of a chunk of rows."""
    logits = F.linear(x, head.weight, head.bias)
    z = logits.to(torch.promote_types(logits.dtype, torch.float32)) * head.scale
    z = head.cap * torch.tanh(z / head.cap) if head.cap else z
    live = labels != NO_LABEL
    index = labels.where(live, 0)[:, None]
    logs = z.log_softmax(-1)
    logprobs = logs.gather(1, index)[:, 0].where(live, 0.0)
    hits = (z.argmax(-1) == labels) & live
    if not wanted:
        return logprobs, hits, x
    slope = logs.exp_().neg_().scatter_add_(1, index, torch.ones_like(logprobs)[:, None])
    slope *= head.scale  # apart: a number times what is true or false is in single precision
    slope *= live[:, None]
    if head.cap:
        slope *= 1 - (z / head.cap) ** 2
    return logprobs, hits, slope.to(x.dtype) @ head.weight
