"""Compare what a model's config claims with what its files hold, before anything of that size is made.

    weights of the class by config.json  <=  SLACK x numbers in the files + SMALL

Without this, one wrong number in config.json of a small folder takes all memory: weights that the files have
in another shape, or not at all, are made anew in the size that config.json says.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules import module as hooks
from transformers.modeling_utils import PreTrainedModel

from graft.errors import ModelError, listed

MOST = 1 << 16  # layers, labels or names in a list of a config; the largest models have hundreds
SLACK = 2  # a model has tied weights twice, and heads that the files lack
SMALL = 1 << 24  # weights that any folder may claim: 64 MB
PARTS = 1 << 9  # parameters that any folder may claim, beside SLACK x its tensors
PACKED = 4  # numbers in a byte, at most
BUFFER = 1 << 26  # numbers in one buffer: a mask of 8,192 x 8,192
COUNTED = ("layer", "label", "expert", "block", "depth", "group", "stage")  # in the names of such counts


def require_plausible(file: Path, facts: dict[str, Any]) -> None:
    """Raise ModelError for settings that no model has: a config class may already take all memory for them.

    facts: what config.json says.
    """
    architectures = facts.get("architectures")
    if not (architectures is None or _are_words(architectures)):
        raise _strange(file, "architectures", architectures, "a list of names of classes")
    if not isinstance(facts.get("model_type", ""), str):
        raise _strange(file, "model_type", facts["model_type"], "the name of an architecture")
    for key, value in _settings(facts):
        if isinstance(value, int) and value > MOST and any(word in key for word in COUNTED):
            raise _strange(file, key, value, f"{MOST:,} at most")
        if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
            raise _strange(file, key, value, "a number of 64 bits")


def require_held(
    cls: type[PreTrainedModel], config: Any, state: dict[str, Any], folder: Path, *, packed: bool
) -> None:
    """Raise ModelError if a class has by its config far more weights than the files hold.

    state: the tensors of the files.  folder: the model's folder, or its GGUF file.
    """
    most = _bytes(folder) * PACKED if packed else sum(math.prod(_shape(tensor)) for tensor in state.values())
    budget = _Budget(SLACK * most + SMALL, SLACK * len(state) + PARTS)
    with ExitStack() as stack:
        stack.callback(hooks.register_module_parameter_registration_hook(budget.parameter).remove)
        stack.callback(hooks.register_module_buffer_registration_hook(budget.buffer).remove)
        stack.enter_context(torch.device("meta"))
        try:
            cls(copy.deepcopy(config))
        except _TooMuch as error:
            what = str(error)
        except Exception:  # every class fails in its own way; from_pretrained will say how
            return
        else:
            return
    large = _larger_than(config.to_dict(), state)
    raise ModelError(
        f"{folder} describes by its config a model of {what}, and its files hold {len(state):,} tensors of "
        f"{most:,} numbers" + (f" ({listed(large, 3)})" if large else ""),
        "weights and config.json of one model",
        "compare with the original folder",
    )


class _TooMuch(Exception):
    """A model has more than its files can hold."""


class _Budget:
    """Counts what a model registers while it is made. Its methods are hooks of torch for all modules."""

    def __init__(self, weights: int, parts: int) -> None:
        self.weights, self.parts = weights, parts
        self.seen_weights = self.seen_parts = 0

    def parameter(self, module: Any, name: str, parameter: Any) -> None:
        self.seen_parts += 1
        self.seen_weights += parameter.numel() if parameter is not None else 0
        if self.seen_parts > self.parts:
            raise _TooMuch(f"more than {self.parts:,} tensors")
        if self.seen_weights > self.weights:
            raise _TooMuch(f"more than {self.weights:,} weights")

    def buffer(self, module: Any, name: str, buffer: Any) -> None:
        if buffer is not None and buffer.numel() > max(BUFFER, self.weights):
            raise _TooMuch(f"{buffer.numel():,} numbers in its buffer {name}")


def _larger_than(facts: dict[str, Any], state: dict[str, Any]) -> list[str]:
    """Return the settings that are larger than every side of every tensor."""
    side = max((max(_shape(tensor), default=0) for tensor in state.values()), default=0)
    numbers = [(key, value) for key, value in _settings(facts) if isinstance(value, int) and value > side]
    return [f"{key} {value:,}" for key, value in sorted(numbers, key=lambda pair: -pair[1])]


def _bytes(folder: Path) -> int:
    """Return the size of the files that hold weights."""
    files = [folder] if folder.is_file() else folder.glob("*.safetensors")
    return sum(file.stat().st_size for file in files)


def _shape(tensor: Any) -> Sequence[int]:
    shape: Sequence[int] = tensor.get_shape() if hasattr(tensor, "get_shape") else tensor.shape
    return shape


def _settings(facts: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the settings of a config and of the configs inside it; numbers of lists by the list's name."""
    for key, value in facts.items():
        if isinstance(value, dict):
            yield from _settings(value)
        elif isinstance(value, list):
            yield from ((str(key), each) for each in value if not isinstance(each, dict | list))
        else:
            yield str(key), value


def _are_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def _strange(file: Path, key: str, value: Any, expected: str) -> ModelError:
    shown = f"{value:,}" if isinstance(value, int) and abs(value) < 10**30 else repr(value)[:40]
    return ModelError(f"{file}: {key} is {shown}", expected, "compare with the original model")
