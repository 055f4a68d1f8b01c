"""What the machine can do, measured between the turns of a row: the best product of torch's dtypes at large
sizes, and the rate of reading memory."""

import time
from typing import Any

import link
import torch

SIZES = ((512, 4096, 4096), (1024, 2048, 5632))  # rows, in, out
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
READ = 1 << 28  # bytes, above any cache
TIMES = 3


def serve(pipe: link.Link, spec: dict[str, Any]) -> None:
    """Find the fastest dtype and size, and measure them again and again, with the reading rate."""
    rates = {(dtype, size): product(dtype, size, 1) for dtype in DTYPES for size in SIZES}
    best = max(rates, key=lambda case: rates[case])
    data = torch.ones(READ // 4)
    pipe.loaded()
    names = {f"{str(d).removeprefix('torch.')} {m}x{k}x{n}": rate for (d, (m, k, n)), rate in rates.items()}

    def unit() -> dict[str, float]:
        return {"flops": product(*best, TIMES), "bandwidth": reading(data)}

    link.serve(pipe, unit, warm=1, ready={"work": 1, "rates": names})


def product(dtype: torch.dtype, size: tuple[int, int, int], times: int) -> float:
    """Return the best rate of x·Wᵀ in operations a second."""
    rows, width, out = size
    x, w = torch.randn(rows, width).to(dtype), torch.randn(out, width).to(dtype)
    linear = torch.nn.functional.linear
    linear(x, w)  # the library may pack or compile at first use
    return 2 * rows * width * out / min(_timed(lambda: linear(x, w)) for _ in range(times))


def reading(data: torch.Tensor) -> float:
    """Return the best rate of reading a tensor once, by sum or dot product, in bytes a second."""
    ways = (lambda: data.sum(), lambda: torch.dot(data, data))
    return data.nbytes / min(_timed(way) for way in ways for _ in range(TIMES))


def _timed(work: Any) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


KINDS = {"limits": serve}
