"""The bases on which every law is tried: makers of tiny models, each call's with weights of its own."""

import copy
import functools
from collections.abc import Callable

import torch
from torch import nn

from graft.base.base import Base
from graft.quant import quantise_model
from models import tiny_model


@functools.cache
def packed(scheme: str) -> nn.Module:
    """Return the tiny Llama in a number format; quantised once, so callers must copy it."""
    return quantise_model(tiny_model("llama"), scheme)


def base_of(make_model: Callable[[], nn.Module]) -> Callable[[], Base]:
    """Return a maker of bases from a maker of models."""
    return lambda: Base(make_model(), name="tiny")


BASES: dict[str, Callable[[], Base]] = {
    "fp32": base_of(lambda: tiny_model("llama")),
    "bf16": base_of(lambda: tiny_model("llama").to(torch.bfloat16)),
    "nf4": base_of(lambda: copy.deepcopy(packed("nf4"))),
    "int4": base_of(lambda: copy.deepcopy(packed("int4"))),
    "encoder": base_of(lambda: tiny_model("bert")),
    "seq2seq": base_of(lambda: tiny_model("t5")),
}
QUANTISED = ("nf4", "int4")
