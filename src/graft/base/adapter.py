"""Adapter: a named, ordered list of (site, insert): what is trained, saved, shared, blended and merged."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graft.core.insert import Insert
from graft.core.method import Method
from graft.core.site import Site
from graft.errors import AdapterError
from graft.formats import peft

Seat = tuple[Site, Insert]
Identity = Callable[[], dict[str, Any]]


class Adapter:
    """Inserts on a base, built by one method or by several in order.

    seats: one list of (site, insert) per method.  base: tells {"name", "fingerprint", ...} of the model it was made
    for; this goes into its files, so that it is not loaded onto another by mistake.
    folder: where its files lie, as far as is known; training forgets it.  beside: how the weights were packed that it
    was trained beside (`Base.quant`), "" where its file does not say.
    """

    folder: Path | None = None
    beside = ""

    def __init__(
        self, name: str, methods: Sequence[Method], seats: Sequence[Sequence[Seat]], base: Identity
    ) -> None:
        self.name, self.methods, self.base = name, tuple(methods), base
        self._seats = [list(part) for part in seats]

    @property
    def inserts(self) -> list[Seat]:
        """All (site, insert) pairs; several at one site run in this order."""
        return [seat for part in self._seats for seat in part]

    @property
    def head(self) -> Any:
        """The method that answers with classes, or None."""
        return next((method for method in self.methods if method.classifies()), None)

    @property
    def in_place(self) -> bool:
        """True when the adapter trains the base's own tensors and therefore cannot share a batch."""
        return any(method.in_place for method in self.methods)

    @property
    def passes(self) -> int:
        """Forwards per micro-batch that training needs."""
        return max(method.passes for method in self.methods)

    @property
    def consistency(self) -> float:
        """Weight of the symmetric KL between the predictions of its passes; the objective computes it."""
        return sum(method.consistency for method in self.methods)

    def of(self, method: Method) -> "Adapter":
        """The part of this adapter that one of its methods built."""
        index = next(i for i, m in enumerate(self.methods) if m is method)
        return Adapter(self.name, [method], [self._seats[index]], self.base)

    # What is trained

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(key, trained tensor), each tensor once."""
        seen: set[int] = set()
        for key, insert in self._keyed():
            for name, parameter in insert.named_parameters():
                if parameter.requires_grad and id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield f"{key}.{name}", parameter

    def parameters(self) -> list[nn.Parameter]:
        """Trained tensors, each once."""
        return [parameter for _, parameter in self.named_parameters()]

    def count(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in self.parameters())

    def train(self, mode: bool = True) -> "Adapter":
        """Switch the inserts' dropout on or off."""
        self.folder = None if mode else self.folder
        for _, insert in self.inserts:
            insert.train(mode)
        return self

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Optimizer groups of all methods, at this learning rate where they have none of their own."""
        return [
            group for m in self.methods for group in m.param_groups(self.of(m), lr if m.lr is None else m.lr)
        ]

    def extra_loss(self, outputs: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """The sum of the methods' own terms for one micro-batch, or None."""
        terms = [method.extra_loss(self.of(method), outputs) for method in self.methods]
        known = [term for term in terms if term is not None]
        return torch.stack(known).sum() if known else None

    def after_step(self, step: int, total: int) -> None:
        """Let the methods act after an optimizer step."""
        for method in self.methods:
            method.after_step(self.of(method), step, total)

    def notices(self) -> list[str]:
        """What the methods have to say before training."""
        said = [method.notice(self.of(method)) for method in self.methods]
        return [text for text in said if text is not None]

    # What is kept

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything that a checkpoint needs to go on exactly here: trained tensors and buffers, as they are."""
        return {
            f"{key}.{name}": tensor
            for key, insert in self._keyed()
            for name, tensor in insert.state_dict().items()
        }

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take over what `tensors` gave, of this adapter or of one built alike."""
        own = self.tensors()
        _same_keys(own, tensors, self.name)
        with torch.no_grad():
            for key, tensor in own.items():
                tensor.copy_(tensors[key])

    def state(self) -> dict[str, torch.Tensor]:
        """{key in the file: tensor}: what another program needs to use the adapter."""
        tensors: dict[str, torch.Tensor] = {}
        for index, method in enumerate(self.methods):
            whole = method.frozen_state(self.of(method))
            if whole is not None:
                tensors.update(whole)
                continue
            for site, insert in self._seats[index]:
                for suffix, tensor in insert.saved().items():
                    tensors[self._file_key(index, site, suffix)] = tensor.detach()
        return tensors

    def load_state(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take over tensors of a file. Missing, unexpected and misshapen ones are all named in one error."""
        own = self.state()
        _same_keys(own, tensors, self.name)
        for index in range(len(self.methods)):
            for site, insert in self._seats[index]:
                insert.load({s: tensors[self._file_key(index, site, s)] for s in insert.saved()})

    def save(self, folder: str | Path) -> Path:
        """Write `adapter_config.json` and `adapter_model.safetensors`, read them again and compare."""
        peft.write(
            Path(folder), self.methods, self._seats, self.state(), {**self.base(), "quant": self.beside}
        )
        self.folder = Path(folder).resolve()
        return Path(folder)

    def fingerprint(self) -> str:
        """SHA-256 of what its files hold: the methods' settings and the tensors."""
        parts = zip(self.methods, self._seats, strict=True)
        settings = [
            [m.peft_type, m.file_config(seats), {k: m.config()[k] for k in m.own_fields}]
            for m, seats in parts
        ]
        found = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
        for key, tensor in sorted(self.state().items()):
            found.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return found.hexdigest()

    def _file_key(self, index: int, site: Site, suffix: str) -> str:
        mixed = sum(not method.is_head() for method in self.methods) > 1
        part = f"{index}." if mixed and site.kind != "final" else ""
        if suffix.startswith("/"):
            return part + suffix[1:]
        root = "base_model" if any(method.outside for method in self.methods) else "base_model.model"
        trunk = peft.trunk(site.root) if self.head is not None and site.kind != "final" else ""
        return f"{root}.{trunk}{site.name}.{part}{suffix}"

    def _keyed(self) -> Iterator[tuple[str, Insert]]:
        for index, part in enumerate(self._seats):
            for position, (site, insert) in enumerate(part):
                yield f"{index}.{position}.{site.name}", insert

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside the block the base computes with the parameters that in-place methods trained."""
        before = []
        for site, insert in self.inserts:
            for name, parameter in insert.swap().items():
                module = site.module
                before.append((module, name, module._parameters[name]))
                module._parameters[name] = parameter
        try:
            yield
        finally:
            for module, name, parameter in reversed(before):
                module._parameters[name] = parameter


def _same_keys(own: dict[str, torch.Tensor], given: dict[str, torch.Tensor], name: str) -> None:
    wrong = [f"{key}: not in the file" for key in own if key not in given]
    wrong += [f"{key}: not in the model" for key in given if key not in own]
    wrong += [
        f"{key}: file {tuple(given[key].shape)}, model {tuple(own[key].shape)}"
        for key in own
        if key in given and given[key].shape != own[key].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise AdapterError(
            f"the tensors of {name!r} do not fit: {'; '.join(wrong[:8])}{more}",
            f"the {len(own)} tensors of this adapter on this base",
            "load the base and the settings it was trained with",
        )
