"""Load an exported folder back, the way its target program would.

A reader takes the folder and the base that it was made from. It is a context: what it opens is closed
afterwards.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from graft.formats import gguf_file, int4
from graft.models.files import quantisation, read_config
from graft.models.files import tensors as tensors_of
from graft.models.load import DTYPES, load, quiet
from graft.shipping.certificate import Reading
from graft.shipping.updates import tensors

if TYPE_CHECKING:
    from graft.base.base import Base

AGAIN = "read again"
CLASSIFIERS = ("ForSequenceClassification", "ForTokenClassification")


def dtype_word(base: "Base") -> str:
    """Return what `load` calls the base's dtype."""
    return next((word for word, dtype in DTYPES.items() if dtype == base.dtype), "fp32")


class Model:
    """A folder of transformers, in 16 or 32 bits or packed, loaded again."""

    of = "model"

    def __init__(self, base: "Base") -> None:
        self.base = base

    def logits(self, ids: torch.Tensor, **extra: Any) -> torch.Tensor:
        logits: torch.Tensor = self.base(ids.to(self.base.device), **extra)[0]
        return logits.to(ids.device)

    def weight(self, name: str) -> torch.Tensor | None:
        path, _, part = name.rpartition(".")
        try:
            return tensors(self.base.model.get_submodule(path)).get(part)
        except AttributeError:  # no such module
            return None


class Classifier:
    """A classifier of transformers, in a folder."""

    of = "classifier"

    def __init__(self, folder: Path, base: "Base") -> None:
        named = (read_config(folder).architectures or [""])[0]
        auto = AutoModelForTokenClassification if "Token" in named else AutoModelForSequenceClassification
        with quiet():
            self.model: Any = auto.from_pretrained(folder, dtype=base.dtype, trust_remote_code=False).eval()
        own = base.model
        self._prefix = "" if own.base_model is own else f"{own.base_model_prefix}."

    def logits(self, ids: torch.Tensor, **extra: Any) -> torch.Tensor:
        inputs = {name: tensor.cpu() for name, tensor in extra.items()}
        with torch.no_grad():
            logits: torch.Tensor = self.model(input_ids=ids.cpu(), **inputs).logits
        return logits.to(ids.device)

    def weight(self, name: str) -> torch.Tensor | None:
        """Return a tensor of the backbone; poolers and language heads are others than those of the base."""
        if not name.startswith(self._prefix) or "pooler" in name:
            return None
        path, _, part = name.removeprefix(self._prefix).rpartition(".")
        try:
            return tensors(self.model.base_model.get_submodule(path)).get(part)
        except AttributeError:  # no such module
            return None


class Packed(Model):
    """A folder with whole zero points. Its weights are the file's tensors, before they become ours."""

    def __init__(self, base: "Base", folder: Path) -> None:
        super().__init__(base)
        self.layers = int4.layers(tensors_of(folder), quantisation(folder))

    def weight(self, name: str) -> torch.Tensor | None:
        path, _, part = name.rpartition(".")
        if part == "weight" and path in self.layers:
            return self.layers[path]().values()
        return super().weight(name)


class Attached:
    """An adapter's folder, attached to the base again."""

    of = "adapter"

    def __init__(self, base: "Base", name: str) -> None:
        self.base, self.name = base, name
        self.state = base.adapters[name].file_state()

    def logits(self, ids: torch.Tensor, **extra: Any) -> torch.Tensor:
        logits: torch.Tensor = self.base(ids, adapters=[self.name], **extra)[0]
        return logits

    def weight(self, name: str) -> torch.Tensor | None:
        return self.state.get(name)


class File(Model):
    """A GGUF file. Its weights are the values of its blocks, before any rounding to the base's dtype."""

    def __init__(self, base: "Base", path: Path) -> None:
        super().__init__(base)
        self.state = gguf_file.state(path, base.model.config)

    def weight(self, name: str) -> torch.Tensor | None:
        tied = getattr(self.base.model, "all_tied_weights_keys", {})
        name = tied.get(name, name)  # the file has one of two tied tensors
        return self.state[name][...].float() if name in self.state else None


class Lora(Attached):
    """An adapter whose tensors are scaled differently from ours, so only its answers are measured."""

    def weight(self, name: str) -> torch.Tensor | None:
        return None


def _load(path: Path, base: "Base") -> "Base":
    """Load a model next to the base if there is room for both, else in main memory."""
    try:
        return load(path, dtype=dtype_word(base), device=base.device)
    except torch.OutOfMemoryError:
        return load(path, dtype=dtype_word(base), device="cpu")


@contextlib.contextmanager
def model(folder: Path, base: "Base") -> Iterator[Reading]:
    """Read the model in a folder, a classifier as transformers alone reads it."""
    cls = read_config(folder).architectures
    yield Classifier(folder, base) if cls and cls[0].endswith(CLASSIFIERS) else Model(_load(folder, base))


@contextlib.contextmanager
def packed(folder: Path, base: "Base") -> Iterator[Reading]:
    """Read the model in a folder of GPTQ, AWQ or compressed-tensors."""
    yield Packed(_load(folder, base), folder)


@contextlib.contextmanager
def gguf(folder: Path, base: "Base") -> Iterator[Reading]:
    """Read the GGUF file in a folder."""
    path = _file(folder)
    yield File(_load(path, base), path)


@contextlib.contextmanager
def adapter(folder: Path, base: "Base") -> Iterator[Reading]:
    """Read the adapter in a folder: attach it to this base inside the block."""
    base.load_adapter(folder, AGAIN)
    try:
        yield Attached(base, AGAIN)
    finally:
        base.detach(AGAIN)


@contextlib.contextmanager
def rewritten(folder: Path, base: "Base") -> Iterator[Reading]:
    """Read an adapter that was written in another form: attach it to this base inside the block."""
    base.load_adapter(folder, AGAIN)
    try:
        yield Lora(base, AGAIN)
    finally:
        base.detach(AGAIN)


@contextlib.contextmanager
def gguf_lora(folder: Path, base: "Base") -> Iterator[Reading]:
    """Read the GGUF adapter in a folder: attach it to this base inside the block."""
    with rewritten(_file(folder), base) as reading:
        yield reading


def _file(folder: Path) -> Path:
    """Return the one GGUF file of a folder that we wrote."""
    return next(folder.glob(f"*{gguf_file.SUFFIX}"))
