"""Faster parts on a model, one instance at a time: linears, attention, norms, gated activations, rotary.

The model keeps its class, keys and values. A module gets an attribute `forward`, which its `__call__` runs
with all hooks; linears stay modules that are called. Attention goes through transformers' registries. Taken
off, no attribute is left.
"""

import types
from typing import Any

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

from graft.base import fast_attention
from graft.base.attention import Attention
from graft.base.fast_parts import faster_forward
from graft.base.linears import Linears
from graft.kernels import native


class Faster:
    """The faster parts of one model, on or off."""

    def __init__(self, model: Any, attention: Attention) -> None:
        self._model, self._attention = model, attention
        self._modules: list[torch.nn.Module] = []
        self._linears = Linears(model)

    def on(self) -> None:
        """Put them on wherever they compute the same as what is there. None without the kernels."""
        self.off()
        if native.level() == "reference":
            return
        self._linears.put_on()
        for module in self._model.modules():
            with unset_fake_temporarily():  # classes are tried with real numbers, for a plan's model too
                forward = None if "forward" in vars(module) else faster_forward(module)
            if forward is not None:
                # A bound method, so that a copy of the model runs on the copy's weights.
                vars(module)["forward"] = types.MethodType(forward, module)
                self._modules.append(module)
        if fast_attention.fits(self._model):
            self._attention.become(fast_attention.NAME)

    def off(self) -> None:
        """Take them off. The model is as it was."""
        self._linears.take_off()
        while self._modules:
            vars(self._modules.pop()).pop("forward", None)
        if self._attention.own == fast_attention.NAME:
            self._attention.become(fast_attention.STOCK)
