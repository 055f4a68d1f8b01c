"""Measure how fast this machine multiplies, decodes packed weights and reads memory.

    products     2 · rows · in · out / seconds     x Wᵀ and dy W, at three shapes, in fp32, bf16 and fp16
    decoding     weights / second                  4-bit codes to fp32
    reading      bytes / second                    a matrix that no cache holds, times a vector

Processors differ in kind: one multiplies in bf16 four times faster than in fp32, the next at half the speed,
and its list of instructions does not tell which. So the choice of a number format follows a measurement. The
first one on a machine takes less than a second: a product that is slow is measured on few rows. Its result is
kept in the user's cache folder, under the processor's name, its threads and the versions of the libraries,
unless the machine is busy. `bench` takes its time and replaces it.
"""

import contextlib
import functools
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

import graft
from graft import storage
from graft.kernels import native, native_packed
from graft.kernels.machine import processor
from graft.kernels.packed import Codebook, Packed
from graft.sizes import MIB

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SHAPES = ((512, 768, 768), (128, 2048, 768), (512, 2048, 2048))  # rows, in, out
DIRECTIONS = ("x Wᵀ", "dy W")
FORMAT = 1  # of the file; raise when what is measured changes
MANY = 20  # calls of one product: more tell nothing
FEW = 32  # rows at least: with fewer, a call costs more than the multiplications
_LEVELS = Codebook("measured", tuple(level / 7.5 - 1 for level in range(16)))
_known: dict[str, "Profile"] = {}


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    product_s: for one product of a shape; a slower one is measured on fewer rows, or, if quick, not at all.
    calls: of each product at least.  total_s: after so long no further product is begun.
    read_bytes: what is read from memory.
    """

    product_s: float
    calls: int
    total_s: float
    read_bytes: int


QUICK = Effort(0.025, 3, 0.35, 64 * MIB)
THOROUGH = Effort(0.15, 5, math.inf, 512 * MIB)


@dataclass(frozen=True)
class Product:
    """The speed of one product.  rate: FLOP/s.  rows: of the shape; a slow product was measured on fewer."""

    dtype: str
    direction: str
    rows: int
    inputs: int
    outputs: int
    rate: float

    @property
    def case(self) -> tuple[str, int, int, int]:
        """What is equal for all number formats."""
        return self.direction, self.rows, self.inputs, self.outputs

    @property
    def seconds(self) -> float:
        """The time of the whole product at this rate."""
        return 2 * self.rows * self.inputs * self.outputs / self.rate


@dataclass(frozen=True)
class Profile:
    """What was measured on this machine.

    table: every product.  decoding: weights/s.  reading: bytes/s.  thorough: measured by `bench`.
    """

    table: tuple[Product, ...]
    decoding: float
    reading: float
    thorough: bool = False

    @property
    def products(self) -> dict[str, float]:
        """FLOP/s of each number format: of the products that were measured in all formats, together."""
        formats = list(dict.fromkeys(one.dtype for one in self.table))
        by_format = [{one.case: one for one in self.table if one.dtype == dtype} for dtype in formats]
        cases = set.intersection(*map(set, by_format))
        return {
            dtype: sum(one.rate * one.seconds for one in table.values() if one.case in cases)
            / sum(one.seconds for one in table.values() if one.case in cases)
            for dtype, table in zip(formats, by_format, strict=True)
        }

    def facts(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return asdict(self) | {"products": self.products}


def profile() -> Profile:
    """Return this machine's profile: from the cache, or measured in less than a second and kept there."""
    conditions = _conditions()
    name = _name(conditions)
    if name not in _known:
        found = _load(name, conditions)
        if found is None:
            found = measured(QUICK)
            if not _busy():  # the next process may find the machine at rest
                _save(name, conditions, found)
        _known[name] = found
    return _known[name]


def kept() -> Profile | None:
    """Return this machine's profile if it was measured before, else None."""
    conditions = _conditions()
    name = _name(conditions)
    return _known.get(name) or _load(name, conditions)


def bench() -> Profile:
    """Measure this machine for some seconds, and keep the result as its profile."""
    conditions = _conditions()
    name = _name(conditions)
    _known[name] = measured(THOROUGH)
    _save(name, conditions, _known[name])
    return _known[name]


def measured(effort: Effort) -> Profile:
    """Measure now."""
    with _one_setting():
        return Profile(
            tuple(_products(effort)), _decoding(effort), _reading(effort), thorough=effort is THOROUGH
        )


@contextlib.contextmanager
def _one_setting() -> Iterator[None]:
    """Measure outside of what surrounds the call: a plan's fakes, gradients, autocast, another default."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with unset_fake_temporarily(), torch.inference_mode(), torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.set_default_dtype(before)


def _products(effort: Effort) -> Iterator[Product]:
    """Measure every case in fp32 and bf16, side by side so that both see the same load, then in fp16."""
    began = time.perf_counter()
    cases = [(direction, *shape) for shape in SHAPES for direction in DIRECTIONS]
    last: dict[tuple[str, str], float] = {}  # the rate of a number format in a direction
    for formats in (("fp32", "bf16"), ("fp16",)):
        for case in cases:
            needed = case[1:] == SHAPES[0] and "fp32" in formats  # without them there is no choice
            if not needed and time.perf_counter() - began > effort.total_s:
                return
            for dtype in formats:
                rate = _rate(dtype, *case, last.get((dtype, case[0])), effort)
                if rate is not None:
                    last[dtype, case[0]] = rate
                    yield Product(dtype, *case, rate)


def _rate(
    dtype: str, direction: str, most: int, inputs: int, outputs: int, expected: float | None, effort: Effort
) -> float | None:
    """Return the FLOP/s of a product on `most` rows, or on as many as the effort allows; None if on too few.

    expected: FLOP/s of a similar product, if that is known.  Without it fp32 takes all rows, as every
    processor multiplies well in it; other formats may be a hundred times slower and begin with few.
    """
    forward, per_row = direction == DIRECTIONS[0], 2 * inputs * outputs
    rows = most if expected is None and dtype == "fp32" else min(FEW, most)
    if expected is not None:
        rows = min(most, int(effort.product_s * expected / per_row))
        if rows < min(FEW, most):
            if effort is not THOROUGH:
                return None
            rows = min(FEW, most)
    weight = torch.full((outputs, inputs), 0.01, dtype=DTYPES[dtype], device="cpu")
    x = torch.full((most, inputs if forward else outputs), 0.01, dtype=DTYPES[dtype], device="cpu")
    while True:
        rate = rows * per_row / _seconds(functools.partial(_multiply, x[:rows], weight, forward), effort)
        more = min(most, int(effort.product_s * rate / per_row))
        if more < 2 * rows:
            return rate
        rows = more


def _multiply(x: Tensor, weight: Tensor, forward: bool) -> Tensor:
    return torch.nn.functional.linear(x, weight) if forward else x @ weight


def _decoding(effort: Effort) -> float:
    rows, columns = (1024 if effort is THOROUGH else 128), 2048
    codes = torch.full((rows, columns // 2), 0x5A, dtype=torch.uint8, device="cpu")
    absmax = torch.full((rows, columns // 64), 0.02, device="cpu")
    weight = Packed(codes, absmax, _LEVELS, 64, columns)
    decode = native_packed.dequantise
    return rows * columns / _seconds(lambda: decode(weight, torch.float32), effort)


def _reading(effort: Effort) -> float:
    matrix = torch.full((effort.read_bytes // (4 * 4096), 4096), 0.01, device="cpu")
    vector = torch.full((4096,), 0.01, device="cpu")
    return matrix.nbytes / _seconds(lambda: matrix @ vector, effort)


def _seconds(work: Callable[[], Tensor], effort: Effort) -> float:
    """Return the shortest time of `work`, after a first call that does not count.

    In the first one libraries choose their kernel and memory is new. What others do on the machine only ever
    adds time, so the shortest is nearest to the machine's own.
    """
    work()
    began, best, calls = time.perf_counter(), math.inf, 0
    while calls < effort.calls or (time.perf_counter() - began < effort.product_s and calls < MANY):
        start = time.perf_counter()
        work()
        best, calls = min(best, time.perf_counter() - start), calls + 1
    return max(best, 1e-9)


def _conditions() -> dict[str, Any]:
    """Return everything that the speed depends on, as far as it can be known."""
    return {
        "format": FORMAT,
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "kernels": native.level(),
        "graft": graft.__version__,
        "torch": torch.__version__,
    }


def _busy() -> bool:
    """Return whether others want all processors of this machine."""
    return hasattr(os, "getloadavg") and os.getloadavg()[0] > (os.cpu_count() or 1)


def _name(conditions: dict[str, Any]) -> str:
    return f"{hashlib.sha256(storage.encode(conditions)).hexdigest()[:16]}.json"


def folder() -> Path:
    """Return the folder of all profiles."""
    return storage.cache_folder("machine")


def _load(name: str, conditions: dict[str, Any]) -> Profile | None:
    """Return a kept profile; None without one that can be read and believed."""
    try:
        kept = json.loads(storage.unseal((folder() / name).read_bytes()) or b"{}")
        if kept["conditions"] != conditions:
            return None
        table = tuple(Product(**one) for one in kept["table"])
        found = Profile(table, kept["decoding"], kept["reading"], kept["thorough"] is True)
        rates = [*found.products.values(), found.decoding, found.reading]
        sound = {"fp32", "bf16"} <= found.products.keys() and all(0 < rate < math.inf for rate in rates)
        return found if sound else None
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
        return None


def _save(name: str, conditions: dict[str, Any], found: Profile) -> None:
    """Keep a profile. Where the disk does not allow it, the next process measures again."""
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: a user without a home folder
        folder().mkdir(parents=True, exist_ok=True)
        facts = {"conditions": conditions, **found.facts()}
        storage.replace(folder() / name, storage.seal(json.dumps(facts, indent=2).encode()))
