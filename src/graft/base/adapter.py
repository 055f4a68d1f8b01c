"""Adapter: a named set of inserts on a base. It is what is trained, saved, shared, blended and merged."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graft.base import adapter_files
from graft.base.summary import adapter_line, adapter_table
from graft.core.insert import InPlace
from graft.core.method import Method
from graft.core.part import Part, Seat
from graft.errors import AdapterError, listed
from graft.storage import named_errors

Identity = Callable[[], dict[str, Any]]


class Adapter:
    """The inserts of one method on a base, or of several methods in order.

    parts: one Part per method. The constructor takes lists of (site, insert).
    base: returns {"name", "fingerprint", "origin", "task_type"} of the model that the adapter was made for.
    Files carry it, so that an adapter is not loaded onto another base by mistake.
    trained_on: the base's quantisation during training (`Base.quant`), "" if the file does not say.
    """

    _saved_as: tuple[Path, str] | None = None  # where it was last saved or loaded, and its fingerprint then
    trained_on = ""

    def __init__(
        self, name: str, methods: Sequence[Method], parts: Sequence[Sequence[Seat]], base: Identity
    ) -> None:
        self.name, self.base = name, base
        self.methods = tuple(methods)
        self.parts = tuple(Part(seats) for seats in parts)

    def __repr__(self) -> str:
        return adapter_line(self)

    def _repr_html_(self) -> str:
        return adapter_table(self)

    @property
    def folder(self) -> Path | None:
        """Where it was last saved or loaded; None if it holds something else by now."""
        if self._saved_as is None or self._saved_as[1] != self.fingerprint():
            return None
        return self._saved_as[0]

    @folder.setter
    def folder(self, folder: Path | None) -> None:
        self._saved_as = None if folder is None else (folder, self.fingerprint())

    @property
    def inserts(self) -> list[Seat]:
        """All (site, insert) pairs. Several at one site run in this order."""
        return [seat for part in self.parts for seat in part.inserts]

    @property
    def head(self) -> Any:
        """The method that answers with classes, or None."""
        return next((method for method in self.methods if method.classifies()), None)

    @property
    def in_place(self) -> bool:
        """Whether the adapter trains the base's own tensors and therefore cannot share a batch."""
        return any(method.in_place for method in self.methods)

    @property
    def passes(self) -> int:
        """The number of forwards that training makes per micro-batch."""
        return max(method.passes for method in self.methods)

    @property
    def consistency(self) -> float:
        """The weight of the symmetric KL between the predictions of two passes; the objective computes it."""
        return sum(method.consistency_weight() for method in self.methods)

    # What is trained

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield (key, trained tensor), each tensor once."""
        seen: set[int] = set()
        for index, part in enumerate(self.parts):
            for key, parameter in part.named_parameters():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield f"{index}.{key}", parameter

    def parameters(self) -> list[nn.Parameter]:
        """Return the trained tensors, each once."""
        return [parameter for _, parameter in self.named_parameters()]

    def count(self) -> int:
        """Count the trained numbers."""
        return sum(parameter.numel() for parameter in self.parameters())

    def train(self, mode: bool = True) -> "Adapter":
        """Switch the inserts' dropout on or off."""
        for _, insert in self.inserts:
            insert.train(mode)
        return self

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return the optimizer groups of all methods.

        A method without a learning rate of its own gets `lr`.
        """
        return [
            group
            for method, part in self._built()
            for group in method.param_groups(part, lr if method.lr is None else method.lr)
        ]

    def extra_loss(self, outputs: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """Return the sum of the methods' own loss terms for one micro-batch, or None."""
        terms = [method.extra_loss(part, outputs) for method, part in self._built()]
        present = [term for term in terms if term is not None]
        return torch.stack(present).sum() if present else None

    def after_step(self, step: int, total: int) -> None:
        """Let the methods act after an optimizer step."""
        for method, part in self._built():
            method.after_step(part, step, total)

    def notices(self) -> list[str]:
        """Return the warnings that the methods want shown before training."""
        texts = [method.notice(part) for method, part in self._built()]
        return [text for text in texts if text is not None]

    # What is kept

    def checkpoint_state(self) -> dict[str, torch.Tensor]:
        """Return all that training needs to go on exactly here: trained tensors and buffers, not copied."""
        return {
            f"{index}.{key}.{name}": tensor
            for index, part in enumerate(self.parts)
            for key, insert in part.named_inserts()
            for name, tensor in insert.state_dict().items()
        }

    def restore_checkpoint_state(self, tensors: dict[str, torch.Tensor]) -> None:
        """Copy a `checkpoint_state` into this adapter.

        It comes from it, or from one that was built equally.
        """
        mine = self.checkpoint_state()
        require_same(mine, tensors, self.name)
        with torch.no_grad():
            for key, tensor in mine.items():
                tensor.copy_(tensors[key])

    def file_state(self) -> dict[str, torch.Tensor]:
        """Return {key in the file: tensor} with everything that another program needs to use the adapter.

        Raises AdapterError if two tensors have one key: the file would hold one of them.
        """
        keys = adapter_files.Keys(self.methods)
        state: dict[str, torch.Tensor] = {}
        for index, part in enumerate(self.parts):
            for site, insert in part.inserts:
                for suffix, tensor in insert.saved().items():
                    key = keys.key(index, site, suffix)
                    if key in state:
                        raise AdapterError(
                            f"two inserts of {self.name!r} at {site.name} would be saved as {key}",
                            "one tensor for each key of a file",
                            "leave one of the two places out",
                        )
                    state[key] = tensor.detach()
        return state

    def load_file_state(self, tensors: dict[str, torch.Tensor]) -> None:
        """Copy the tensors of a file into this adapter.

        Raises AdapterError, which names all missing, unexpected and misshapen tensors at once.
        """
        require_same(self.file_state(), tensors, self.name)
        keys = adapter_files.Keys(self.methods)
        for index, part in enumerate(self.parts):
            for site, insert in part.inserts:
                insert.load({suffix: tensors[keys.key(index, site, suffix)] for suffix in insert.saved()})

    def save(self, folder: str | Path) -> Path:
        """Write `adapter_config.json` and `adapter_model.safetensors`, read the tensors again and compare.

        Raises MachineError for errors of the system (SpaceError if the disk is full).
        """
        base = {**self.base(), "quant": self.trained_on}
        with named_errors("while saving the adapter", Path(folder)):
            adapter_files.write(Path(folder), self.methods, self.parts, self.file_state(), base)
        self.folder = Path(folder).resolve()
        return Path(folder)

    def fingerprint(self) -> str:
        """Return the SHA-256 of what the adapter's files hold: the methods' settings and the tensors."""
        settings = [
            [m.files.peft_type, m.files.describe(m, part), m.files.own_settings(m)]
            for m, part in self._built()
        ]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
        for key, tensor in sorted(self.file_state().items()):
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside the block the base computes with the parameters that in-place methods trained."""
        before = []
        for site, insert in self.inserts:
            for name, parameter in insert.swap().items() if isinstance(insert, InPlace) else ():
                module = site.module
                before.append((module, name, module._parameters[name]))
                module._parameters[name] = parameter
        try:
            yield
        finally:
            for module, name, parameter in reversed(before):
                module._parameters[name] = parameter

    def _built(self) -> Iterator[tuple[Method, Part]]:
        """Yield every method with what it built."""
        return zip(self.methods, self.parts, strict=True)


def require_same(mine: dict[str, torch.Tensor], given: dict[str, torch.Tensor], name: str) -> None:
    """Raise AdapterError unless these are tensors of the same names, shapes and kinds of numbers."""
    wrong = [f"{key}: not in the file" for key in mine if key not in given]
    wrong += [f"{key}: not in the model" for key in given if key not in mine]
    wrong += [
        f"{key}: file {tuple(given[key].shape)}, model {tuple(mine[key].shape)}"
        for key in mine
        if key in given and given[key].shape != mine[key].shape
    ]
    wrong += [
        f"{key}: file {given[key].dtype}, model {mine[key].dtype}"
        for key in mine
        if key in given and given[key].is_floating_point() != mine[key].is_floating_point()
    ]
    if wrong:
        raise AdapterError(
            f"the tensors of {name!r} do not fit: {listed(wrong, 8, '; ')}",
            f"the {len(mine)} tensors of this adapter on this base",
            "load the base and the settings it was trained with",
        )
