"""Written folders as their readers see them, for `certificate`: a model's folder, an adapter's folder.

A reader takes the folder and the base that it was made from, and is a context: what it opens is closed behind it.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from graft.export.certificate import Reading, tensors
from graft.load import DTYPES, load

if TYPE_CHECKING:
    from graft.base import Base

AGAIN = "read again"


class Model:
    """A folder of transformers, in 16 or 32 bits or packed, loaded again."""

    of = "model"

    def __init__(self, base: "Base") -> None:
        self.base = base

    def logits(self, ids: torch.Tensor, **extra: Any) -> torch.Tensor:
        found: torch.Tensor = self.base(ids.to(self.base.device), **extra)[0]
        return found.to(ids.device)

    def weight(self, name: str) -> torch.Tensor | None:
        path, _, own = name.rpartition(".")
        try:
            return tensors(self.base.model.get_submodule(path)).get(own)
        except AttributeError:  # no such module
            return None


class Attached:
    """An adapter's folder, attached to the base once more."""

    of = "adapter"

    def __init__(self, base: "Base", name: str) -> None:
        self.base, self.name = base, name
        self.state = base.adapters[name].state()

    def logits(self, ids: torch.Tensor, **extra: Any) -> torch.Tensor:
        found: torch.Tensor = self.base(ids, adapters=[self.name], **extra)[0]
        return found

    def weight(self, name: str) -> torch.Tensor | None:
        return self.state.get(name)


@contextlib.contextmanager
def model(folder: Path, base: "Base") -> Iterator[Reading]:
    """The model in a folder: beside the base where there is room for both, else in main memory."""
    dtype = next((word for word, dtype in DTYPES.items() if dtype == base.dtype), "fp32")
    try:
        again = load(folder, dtype=dtype, device=base.device)
    except torch.OutOfMemoryError:
        again = load(folder, dtype=dtype, device="cpu")
    yield Model(again)


@contextlib.contextmanager
def adapter(folder: Path, base: "Base") -> Iterator[Reading]:
    """The adapter in a folder, on this base for a while."""
    base.load_adapter(folder, AGAIN)
    try:
        yield Attached(base, AGAIN)
    finally:
        base.detach(AGAIN)


READERS: dict[str, Callable[[Path, "Base"], contextlib.AbstractContextManager[Reading]]] = {
    "hf": model,
    "peft": adapter,
}
