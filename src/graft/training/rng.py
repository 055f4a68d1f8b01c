"""Save and restore every random generator that training may use, as tensors and JSON."""

import contextlib
import random
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch


def seed(value: int) -> None:
    """Seed all generators."""
    torch.manual_seed(value)  # the CPU's and every device's
    random.seed(value)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(value % 2**32)


def tensors() -> dict[str, torch.Tensor]:
    """Return the states of torch's generators: the CPU's, and each GPU's."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states |= {f"cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def values() -> dict[str, Any]:
    """Return the states of Python's generator, and of NumPy's if anything has imported it, as JSON."""
    version, state, gauss = random.getstate()
    states: dict[str, Any] = {"python": [version, list(state), gauss]}
    if numpy := sys.modules.get("numpy"):
        algorithm, keys, *rest = numpy.random.get_state(legacy=True)
        states["numpy"] = [algorithm, keys.tolist(), *rest]
    return states


def restore(states: Mapping[str, torch.Tensor], others: Mapping[str, Any]) -> None:
    """Restore the states that `tensors` and `values` returned."""
    torch.set_rng_state(states["cpu"])
    for name, state in states.items():
        if name.startswith("cuda.") and int(name[5:]) < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, int(name[5:]))
    version, state, gauss = others["python"]
    random.setstate((version, tuple(state), gauss))
    if "numpy" in others and (numpy := sys.modules.get("numpy")):
        algorithm, keys, *rest = others["numpy"]
        numpy.random.set_state((algorithm, numpy.array(keys, dtype=numpy.uint32), *rest))


@contextlib.contextmanager
def preserved() -> Iterator[None]:
    """Restore all generators after the block, whatever it drew from them."""
    before = tensors(), values()
    try:
        yield
    finally:
        restore(*before)


@contextlib.contextmanager
def undone() -> Iterator[None]:
    """Restore all generators if the block does not come to its end."""
    before = tensors(), values()
    try:
        yield
    except BaseException:
        restore(*before)
        raise
