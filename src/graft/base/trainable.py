"""Trainable: a base under one adapter, as a module whose parameters are the adapter's.

Whatever trains a module can train an adapter so: transformers' Trainer, accelerate, a loop of one's own. It
finds the adapter's parameters for the optimizer and for clipping, and its checkpoints hold the adapter alone.
`adapter.save` writes the files that others read.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from graft.base.adapter import Adapter
from graft.core.method import Method
from graft.errors import ModelError, notice


class Trainable(nn.Module):
    """The model of a base (a `Base`) under one adapter.

    It takes and returns what the model does. `train` and `eval` switch the adapter's dropout; the base's own
    stays off, as in `graft.train`.
    """

    _base: Any
    _name: str

    def __init__(self, base: Any, adapter: Adapter) -> None:
        super().__init__()
        if any(site.kind == "final" for site, _ in adapter.inserts):
            raise ModelError(
                f"{adapter.name!r} has a task head, whose logits the model does not return",
                "an adapter that changes the model's own answers",
                "use graft.train, or call base(...) in a loop of your own",
            )
        vars(self)["_base"], vars(self)["_name"] = base, adapter.name  # no submodules: the base is frozen
        self.inserts = nn.ModuleList(insert for _, insert in adapter.inserts)
        vars(self)["forward"] = _with_signature(self._answer, base.model.forward)
        nn.Module.train(self, base.model.training)
        _tell(adapter)

    def forward(self, *args: Any, labels: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """Run the model under the adapter. Trainer reads here that there are labels."""
        return self._answer(*args, labels=labels, **kwargs)

    def _answer(self, *args: Any, **kwargs: Any) -> Any:
        with self._base.using(self._name):
            return self._base.model(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Write by transformers' own loop under the adapter."""
        with self._base.using(self._name):
            return self._base.model.generate(*args, **kwargs)

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self._base.model.config

    @property
    def generation_config(self) -> Any:
        """How the model generates."""
        return self._base.model.generation_config

    @property
    def main_input_name(self) -> str:
        """The name of the model's first input."""
        name: str = self._base.model.main_input_name
        return name

    @property
    def device(self) -> torch.device:
        """The device of the model's embeddings."""
        return self._base.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of activations."""
        return self._base.dtype

    def get_input_embeddings(self) -> nn.Module:
        """Return the model's table of tokens."""
        table: nn.Module = self._base.model.get_input_embeddings()
        return table

    def activation_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Recompute blocks in backward. Settings of others are not needed."""
        self._base.checkpointing(True)

    def activation_checkpointing_disable(self) -> None:
        """Keep what blocks compute for backward."""
        self._base.checkpointing(False)

    gradient_checkpointing_enable = activation_checkpointing_enable  # older names
    gradient_checkpointing_disable = activation_checkpointing_disable

    def train(self, mode: bool = True) -> "Trainable":
        super().train(mode)
        self._base.train(mode)
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the adapter's tensors, each under one name, as safetensors wants them."""
        state = super().state_dict(*args, **kwargs)
        seen: set[int] = set()
        for name, tensor in list(state.items()):
            if tensor.data_ptr() in seen and tensor.numel():
                del state[name]
            seen.add(tensor.data_ptr())
        return state

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load what `state_dict` returned."""
        mine: dict[str, torch.Tensor] = super().state_dict()
        names = {tensor.data_ptr(): name for name, tensor in mine.items() if name in state_dict}
        other = {name: names.get(tensor.data_ptr(), name) for name, tensor in mine.items()}
        full = {**state_dict, **{name: state_dict[o] for name, o in other.items() if o in state_dict}}
        return super().load_state_dict(full, strict, assign)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "Trainable":
        """Move the base too, with all of its adapters, so that they stay on one device."""
        self._base.model._apply(fn)
        for adapter in self._base.adapters.values():
            for _, insert in adapter.inserts:
                insert._apply(fn)
        return self


def _with_signature(answer: Callable[..., Any], like: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that says it takes what another takes: Trainer drops columns that nobody takes."""

    @functools.wraps(like)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return answer(*args, **kwargs)

    return forward


def _tell(adapter: Adapter) -> None:
    """Say so if a method does more in training than a forward and an optimizer step."""
    doors = {"extra_loss": "its own loss", "after_step": "what it does after a step"}
    for method in adapter.methods:
        kind = type(method)
        left_out = [
            words for door, words in doors.items() if getattr(kind, door) is not getattr(Method, door)
        ]
        if method.passes > 1:
            left_out.append(f"{method.passes} passes over every batch")
        if left_out:
            notice(
                f"{kind.__name__} trains with {' and '.join(left_out)}: graft.train does that, a loop of "
                "your own must (adapter.extra_loss, adapter.after_step, adapter.passes)"
            )
