"""Task head: a linear classifier after the last hidden state.

    logits = W·pool(h) + b       h (B, T, D), W (classes, D);  pool: the last token, the first, or the mean
    logits_t = W·h_t + b         pool "none": a class for every token, for tagged words

Alone it is a linear probe; with another method it is the head that a task needs. Decoders: the last token
that is not padding, no bias, named `score`, as in transformers' sequence classification and in PEFT.
Encoders: a bias, named `classifier`. Classes of tokens have a bias on both, as in transformers' token
classification.
Differs: encoders pool by the mean over live tokens unless set differently, because that is what sentence
encoders are trained for. And the head belongs to the adapter, so rows of one batch may use adapters with
other heads.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from graft.core.file_layout import FileLayout
from graft.core.insert import AdapterModule, Head
from graft.core.method import Method, No
from graft.core.part import Part
from graft.core.schema import Count, Names
from graft.core.site import Site
from graft.errors import one_of

INITS = ("small", "unit", "zero")
POOLS = ("auto", "last", "first", "mean", "none")


class HeadFiles(FileLayout):
    """What PEFT calls the task; the rest of a head is in its tensors."""

    def describe(self, method: Any, part: Part) -> dict[str, Any]:
        return {"task_type": "TOKEN_CLS" if method.every_token else "SEQ_CLS"}


@dataclass(frozen=True, kw_only=True)
class TaskHead(Method):
    num_labels: Count = 2  # classes; as many as there are names in labels, where these are given
    # which hidden state: last, first, mean, none (each); auto: last on decoders, mean on encoders
    pool: str = "auto"
    labels: Names = ()  # names of the classes, in order
    # first weights: small, N(0, 0.02²); unit, N(0, 1/(D + 1)), as reward models have them; zero, as values
    init: str = "small"

    kinds: ClassVar = ("final",)
    files: ClassVar = HeadFiles("GRAFT_HEAD", own=frozenset({"num_labels", "pool", "labels", "init"}))
    newborn: ClassVar = No("it answers with classes instead of tokens")
    mergeable: ClassVar = No("a head stays after the merged base")

    def __post_init__(self) -> None:
        if self.labels:
            object.__setattr__(self, "num_labels", len(self.labels))
        one_of("init", self.init, INITS)
        one_of("pool", self.pool, POOLS)

    @property
    def every_token(self) -> bool:
        """Whether every token gets a class, instead of the row."""
        return self.pool == "none"

    def build(self, site: Site) -> AdapterModule:
        decoder = site.name == "score"
        pool = ("last" if decoder else "mean") if self.pool == "auto" else self.pool
        width, bias = site.in_features, not decoder or self.every_token
        return Classifier(width, self.num_labels, pool, bias=bias, std=self.spread(width))

    def spread(self, width: int) -> float:
        """Return the standard deviation of the first weights of a head on states of this width."""
        return {"small": 0.02, "unit": (width + 1) ** -0.5, "zero": 0.0}[self.init]


class Classifier(Head):
    """W and b. Logits are (B, classes), or (B, T, classes) where nothing is pooled."""

    def __init__(self, width: int, classes: int, pool: str, *, bias: bool, std: float) -> None:
        super().__init__()
        self.pool = pool
        self.weight = nn.Parameter(torch.randn(classes, width) * std)
        self.bias = nn.Parameter(torch.zeros(classes)) if bias else None

    def forward(self, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        states = states.to(self.weight.dtype)  # fp32, whatever the base computes in
        if self.pool == "none":
            return F.linear(states, self.weight, self.bias)
        live = states.new_ones(states.shape[:2]) if mask is None else mask.to(states)
        return F.linear(self._pooled(states, live), self.weight, self.bias)

    def _pooled(self, x: torch.Tensor, live: torch.Tensor) -> torch.Tensor:
        if self.pool == "mean":
            return (x * live[..., None]).sum(1) / live.sum(1, keepdim=True)
        order = live if self.pool == "first" else live * torch.arange(live.shape[1], device=x.device)
        position = order.argmax(1)
        return x[torch.arange(len(x), device=x.device), position]
