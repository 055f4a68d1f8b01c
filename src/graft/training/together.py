"""Several adapters that are trained at once, such as a policy with its values: to the loop they are one.

The first one is what the run is about: its tensors have the same names in checkpoints as alone. Those of the
others begin with the folder in which they are saved in the end.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graft.base.adapter import Adapter
from graft.core.part import Seat

SEPARATOR = "/"  # after the folder's name; no tensor of an adapter has it in its name


class Together:
    """An adapter, and others that are trained beside it.  others: by the folder of the run for each."""

    def __init__(self, first: Adapter, others: Mapping[str, Adapter]) -> None:
        self.first, self.others = first, dict(others)
        self.name, self.methods = first.name, first.methods
        self.consistency, self.passes = first.consistency, first.passes

    def _all(self) -> list[tuple[str, Adapter]]:
        return [("", self.first), *((folder + SEPARATOR, other) for folder, other in self.others.items())]

    @property
    def inserts(self) -> list[Seat]:
        """The (site, insert) pairs of all of them."""
        return [seat for _, adapter in self._all() for seat in adapter.inserts]

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield (key, trained tensor)."""
        for begin, adapter in self._all():
            yield from ((begin + key, parameter) for key, parameter in adapter.named_parameters())

    def parameters(self) -> list[nn.Parameter]:
        """Return the trained tensors."""
        return [parameter for _, parameter in self.named_parameters()]

    def count(self) -> int:
        """Count the trained numbers."""
        return sum(adapter.count() for _, adapter in self._all())

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return the optimizer groups of all of them."""
        return [group for _, adapter in self._all() for group in adapter.param_groups(lr)]

    def extra_loss(self, outputs: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """Return the loss terms of the first one's methods, or None."""
        return self.first.extra_loss(outputs)

    def after_step(self, step: int, total: int) -> None:
        """Let the methods act after an optimizer step."""
        for _, adapter in self._all():
            adapter.after_step(step, total)

    def checkpoint_state(self) -> dict[str, torch.Tensor]:
        """Return all that training needs to go on exactly here, not copied."""
        return {
            begin + key: tensor
            for begin, adapter in self._all()
            for key, tensor in adapter.checkpoint_state().items()
        }

    def restore_checkpoint_state(self, tensors: dict[str, torch.Tensor]) -> None:
        """Copy a `checkpoint_state` into them."""
        beside = {key for begin, _ in self._all()[1:] for key in tensors if key.startswith(begin)}
        self.first.restore_checkpoint_state({k: t for k, t in tensors.items() if k not in beside})
        for begin, adapter in self._all()[1:]:
            own = {key.removeprefix(begin): t for key, t in tensors.items() if key.startswith(begin)}
            adapter.restore_checkpoint_state(own)

    def file_state(self) -> dict[str, torch.Tensor]:
        """Return {key in the file: tensor} of the first one."""
        return self.first.file_state()

    def save(self, folder: str | Path) -> Path:
        """Write the files of the first one."""
        return self.first.save(folder)


Trained = Adapter | Together
