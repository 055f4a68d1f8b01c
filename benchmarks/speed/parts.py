"""Where a step's time goes: the operations of torch's profiler, sorted into seven parts for both sides alike.

An operation belongs to the optimizer if it runs inside its step, to the head or the adapter if one of its
matrices has the size of the vocabulary or the rank, and else to the part that its name tells. What no
operation accounts for, Python itself above all, is the rest.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from columns import PARTS

OPTIMIZER = "optimizer step"  # the range that Graft's optimizer is marked with
# The first pattern that a name holds tells its part; in every case, so that classes and functions both match.
NAMES = (
    ("optimizer", r"^Optimizer\.step|adamw|^optimizer step|_foreach|clip_grad|linalg_vector_norm"),
    ("head and loss", r"nll_?loss|cross_?entropy|log_?softmax|linear_?loss|fused_?loss|log_?prob"),
    ("attention", r"scaled_dot_product|attention|flash|softmax"),
    ("unpacking", r"dequant|unpack|bucketize|embedding_bag|decode_|index_select|bitwise_"),
    ("products", r"(::|_)(mm|addmm|bmm|baddbmm|gemm|gemv)($|_)|matmul|linear$|linear[A-Z_]|packed"),
    ("adapter", r"lora"),
    ("element-wise", r"copy_|::to$|contiguous|clone|norm|rotary|silu|swi?glu|gated|residual"),
    (
        "element-wise",
        r"::(mul|add|sub|div|neg|pow|rsqrt|mean|sum|cat|exp|sigmoid|fill|zero|where|masked_fill|lerp|sqrt"
        r"|addcmul|addcdiv|gather|index|embedding|slice_backward|stack)_?(_backward)?$",
    ),
)
PLAIN = [(part, re.compile(pattern, re.IGNORECASE)) for part, pattern in NAMES]


def profiler() -> Any:
    """Return a profiler of this process's processor time with the shapes of all operands."""
    from torch.profiler import ProfilerActivity, profile

    return profile(activities=[ProfilerActivity.CPU], record_shapes=True)


def split(events: Iterable[Any], wall: float, *, vocabulary: int, rank: int) -> dict[str, float]:
    """Return the seconds of each part of PARTS; together they are `wall`, the seconds of the whole step.

    events: those of the profiler: name, cpu_parent, input_shapes, self_cpu_time_total in microseconds.
    """
    spent = dict.fromkeys(PARTS, 0.0)
    for event in events:
        spent[part_of(event, vocabulary, rank)] += event.self_cpu_time_total / 1e6
    known = sum(value for part, value in spent.items() if part != "rest")
    # Ranges of other threads can overlap the main one's: the parts may not exceed the whole.
    scale = min(1.0, wall / known) if known else 1.0
    spent = {part: value * scale for part, value in spent.items()}
    return spent | {"rest": wall - known * scale}


def part_of(event: Any, vocabulary: int, rank: int) -> str:
    """Return the part that an operation belongs to."""
    names = [event.name, *_ancestors(event)]
    if any(PLAIN[0][1].search(name) for name in names):
        return "optimizer"
    by_name = [part for name in names for part in [named(name)] if part != "rest"]
    own = by_name[0] if by_name else "rest"
    if own in ("products", "element-wise", "head and loss", "rest", "adapter"):
        sizes = _sizes(event.input_shapes)
        if vocabulary in sizes and "embedding" not in event.name:
            return "head and loss"
        if rank in sizes:
            return "adapter"
    return own


def named(name: str) -> str:
    """Return the part that the name of an operation tells.

    >>> named("aten::mm"), named("aten::_scaled_dot_product_flash_attention_for_cpu"), named("aten::copy_")
    ('products', 'attention', 'element-wise')
    >>> named("bitsandbytes::dequantize_4bit"), named("aten::nll_loss_backward"), named("aten::view")
    ('unpacking', 'head and loss', 'rest')
    """
    return next((part for part, pattern in PLAIN if pattern.search(name)), "rest")


def shares(spent: Mapping[str, float]) -> list[float]:
    """Return the parts' shares of their sum, in the order of PARTS."""
    total = sum(spent.values()) or 1.0
    return [spent.get(part, 0.0) / total for part in PARTS]


def _ancestors(event: Any) -> list[str]:
    found = []
    while (event := event.cpu_parent) is not None:
        found.append(event.name)
    return found


def _sizes(shapes: Sequence[Any] | None) -> set[int]:
    """Return the sizes of all axes of all operands; a list of tensors has a list of shapes."""
    sizes: set[int] = set()
    for shape in shapes or ():
        for size in shape if isinstance(shape, list | tuple) else ():
            sizes |= set(size) if isinstance(size, list | tuple) else {size}
    return sizes
