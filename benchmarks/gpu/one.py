"""One row, in a process of its own: python one.py NAME DEVICE; prints its facts as JSON."""

import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.extend(str(Path(__file__).parents[1] / name) for name in ("common", "speed"))
import drawn
import internals
import memory
import torch
from large import GIB, LARGE, RANK, ROWS, Row

import graft

WARM = 2  # steps that are not timed, unless there are too few
STEP = 1024  # tokens: the longest row is found to this
MOST = 1 << 20  # tokens
FEW = 256  # tokens at most of a row on a processor, which is only a trial
SIDE = 8192  # of the product that shows what the machine can do
TRIED = 20


class Timed(internals.Observer):  # type: ignore[misc]
    """Keeps the seconds and the losses of all steps; the loop reads each loss, so that a step has ended."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def start(self, plan: dict[str, Any]) -> None:
        """Start the clock."""
        self.since = time.perf_counter()

    def note(self, text: str) -> None:
        """Leave notes to the log."""
        print(text, file=sys.stderr)

    def step(self, record: dict[str, Any]) -> None:
        """Note a step."""
        now = time.perf_counter()
        self.seconds.append(now - self.since)
        self.losses.append(record["loss"])
        self.since = now


class Rows(internals.Source):  # type: ignore[misc]
    """The same random row at every step, every token of it supervised: what a run needs of a feed."""

    def __init__(self, base: graft.Base, vocabulary: int, length: int) -> None:
        ids = torch.randint(vocabulary, (1, length), generator=torch.Generator().manual_seed(0))
        self.batch = internals.packed_batch(base, ids)
        self.steps_per_epoch = 1

    def step(self, epoch: int, index: int) -> list[Any]:
        """Return the micro-batches of a step."""
        return [self.batch]

    def longest(self) -> Any:
        """Return the batch that needs most memory."""
        return self.batch


def measure(row: Row, device: torch.device) -> dict[str, Any]:
    """Return what was measured; the row does not fit if memory runs out, and has no speed then."""
    shape = LARGE[row.shape]
    cuda = device.type == "cuda"
    if cuda and row.limit_gib:
        whole = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, row.limit_gib * GIB / whole))
    rate = product_rate(device) if cuda else None
    if cuda:  # of the measured product nothing stays
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    facts: dict[str, Any] = {"fits": False, "least_gib": row.least_gib, "product_tflops": rate}
    if cuda:
        facts |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    try:
        base = drawn.base(shape, row.quant, device, max(row.length, MOST if cuda else FEW))
        base.attach("trained", graft.LoRA(r=RANK, lora_alpha=2 * RANK))
        length = row.length or longest(lambda n: fits(base, row, n), *((STEP, MOST) if cuda else (64, FEW)))
        if not length:
            return facts | {"why": "not even the shortest row fits"}
        facts["tokens"] = length
        if cuda:
            torch.cuda.reset_peak_memory_stats(device)
        timed = train(base, row, length, row.steps)
    except (internals.TrainingError, torch.OutOfMemoryError) as error:
        return facts | {"why": str(error).splitlines()[0]}
    warm = min(WARM, len(timed.seconds) - 1)
    seconds = statistics.median(timed.seconds[warm:])
    tokens_per_s = length / seconds
    tflops = tokens_per_s * shape.flops(length, RANK) / 1e12
    return facts | {
        "fits": True, "least_gib": least(row, length), "seconds": seconds, "tokens_per_s": tokens_per_s,
        "tflops": tflops, "share": tflops / rate if rate else None, "loss_first": timed.losses[0],
        "loss_last": timed.losses[-1], **taken(device),
    }  # fmt: skip


def least(row: Row, length: int) -> float:
    """Return the least memory of a step of so many tokens in GiB."""
    return replace(row, length=length).least_gib


def train(base: graft.Base, row: Row, length: int, steps: int) -> Timed:
    """Train by Graft's own loop at a constant rate."""
    observer = Timed()
    how = {"max_steps": steps, "save_every": 1 << 20, "eval_every": 1 << 20, "lr": 1e-4, "warmup": 0.0}
    how |= {"schedule": "constant", "gradient_checkpointing": row.checkpointing}
    feed = Rows(base, LARGE[row.shape].vocabulary, length)
    with tempfile.TemporaryDirectory() as folder:
        internals.trained_loss(base, "trained", feed, folder, observer=observer, **how)
    return observer


def fits(base: graft.Base, row: Row, length: int) -> bool:
    """Return whether a step of this length finds the memory that it needs."""
    try:
        train(base, row, length, 1)
    except (internals.TrainingError, torch.OutOfMemoryError):
        return False
    finally:
        gc.collect()  # what the error held
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return True


def longest(fit: Callable[[int], bool], step: int, most: int) -> int:
    """Return the largest multiple of `step` up to `most` that fits, 0 if none does, by doubling and halving.

    >>> longest(lambda n: n <= 700, 100, 1600), longest(lambda n: n <= 9999, 100, 1600)
    (700, 1600)
    """
    below, above = 0, step
    while above <= most and fit(above):
        below, above = above, 2 * above
    above = min(above, most + step)
    while above - below > step:
        middle = (below + above) // (2 * step) * step
        below, above = (middle, above) if fit(middle) else (below, middle)
    return below


def taken(device: torch.device) -> dict[str, float]:
    """Return the peak of torch's allocator, and what the whole process takes of the device, in GiB."""
    if device.type != "cuda":
        return {"peak_gib": memory.peak() / GIB}
    free, whole = torch.cuda.mem_get_info(device)
    peak = torch.cuda.max_memory_allocated(device) / GIB
    return {"peak_gib": peak, "device_gib": (whole - free) / GIB}


def product_rate(device: torch.device) -> float:
    """Return the best rate of a large bf16 product, in TFLOP/s."""
    a, b = (torch.randn(SIDE, SIDE, device=device, dtype=torch.bfloat16) for _ in "ab")
    best = float("inf")
    for _ in range(TRIED):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in "se")
        start.record()
        a @ b
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end) / 1e3)
    return 2 * SIDE**3 / best / 1e12


if __name__ == "__main__":
    (wanted,) = [row for row in ROWS if row.name == sys.argv[1]]
    print(json.dumps(measure(wanted, torch.device(sys.argv[2]))))
