"""Written folders as their readers see them, for `certificate`: a model's folder, an adapter's folder.

A reader takes the folder and the base that it was made from, and is a context: what it opens is closed behind it.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from graft.formats import gguf_file, int4
from graft.models.files import quantisation
from graft.models.files import tensors as tensors_of
from graft.models.load import DTYPES, load
from graft.shipping.certificate import Reading, tensors

if TYPE_CHECKING:
    from graft.base.base import Base

AGAIN = "read again"


def dtype_word(base: "Base") -> str:
    """How `load` calls the base's dtype."""
    return next((word for word, dtype in DTYPES.items() if dtype == base.dtype), "fp32")


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


class Packed(Model):
    """A folder with whole zero points: its weights as the tensors of the file have them, before they become ours."""

    def __init__(self, base: "Base", folder: Path) -> None:
        super().__init__(base)
        self.layers = int4.layers(tensors_of(folder), quantisation(folder))

    def weight(self, name: str) -> torch.Tensor | None:
        path, _, own = name.rpartition(".")
        if own == "weight" and path in self.layers:
            return self.layers[path]().values()
        return super().weight(name)


class Attached:
    """An adapter's folder, attached to the base once more."""

    of = "adapter"

    def __init__(self, base: "Base", name: str) -> None:
        self.base, self.name = base, name
        self.state = base.adapters[name].file_state()

    def logits(self, ids: torch.Tensor, **extra: Any) -> torch.Tensor:
        found: torch.Tensor = self.base(ids, adapters=[self.name], **extra)[0]
        return found

    def weight(self, name: str) -> torch.Tensor | None:
        return self.state.get(name)


class File(Model):
    """A GGUF file: its weights as its blocks stand for them, before any rounding to the base's dtype."""

    def __init__(self, base: "Base", path: Path) -> None:
        super().__init__(base)
        self.state = gguf_file.state(path, base.model.config)

    def weight(self, name: str) -> torch.Tensor | None:
        name = getattr(self.base.model, "all_tied_weights_keys", {}).get(
            name, name
        )  # of tied ones the file has one
        return self.state[name][...].float() if name in self.state else None


class Lora(Attached):
    """A GGUF adapter; its tensors are scaled otherwise than ours, so that only what it answers is measured."""

    def weight(self, name: str) -> torch.Tensor | None:
        return None


def _load(path: Path, base: "Base") -> "Base":
    """A model: beside the base where there is room for both, else in main memory."""
    try:
        return load(path, dtype=dtype_word(base), device=base.device)
    except torch.OutOfMemoryError:
        return load(path, dtype=dtype_word(base), device="cpu")


@contextlib.contextmanager
def model(folder: Path, base: "Base") -> Iterator[Reading]:
    """The model in a folder."""
    yield Model(_load(folder, base))


@contextlib.contextmanager
def packed(folder: Path, base: "Base") -> Iterator[Reading]:
    """The model in a folder of GPTQ, AWQ or compressed-tensors."""
    yield Packed(_load(folder, base), folder)


@contextlib.contextmanager
def gguf(folder: Path, base: "Base") -> Iterator[Reading]:
    """The GGUF file in a folder."""
    path = _file(folder)
    yield File(_load(path, base), path)


@contextlib.contextmanager
def adapter(folder: Path, base: "Base") -> Iterator[Reading]:
    """The adapter in a folder, on this base for a while."""
    base.load_adapter(folder, AGAIN)
    try:
        yield Attached(base, AGAIN)
    finally:
        base.detach(AGAIN)


@contextlib.contextmanager
def gguf_lora(folder: Path, base: "Base") -> Iterator[Reading]:
    """The GGUF adapter in a folder, on this base for a while."""
    base.load_adapter(_file(folder), AGAIN)
    try:
        yield Lora(base, AGAIN)
    finally:
        base.detach(AGAIN)


def _file(folder: Path) -> Path:
    """The one GGUF file of a folder that we wrote."""
    return next(folder.glob(f"*{gguf_file.SUFFIX}"))


READERS: dict[str, Callable[[Path, "Base"], contextlib.AbstractContextManager[Reading]]] = {
    "hf": model,
    "gguf": gguf,
    "bnb": model,
    **dict.fromkeys(int4.FORMATS, packed),
    "peft": adapter,
    "gguf-lora": gguf_lora,
}
