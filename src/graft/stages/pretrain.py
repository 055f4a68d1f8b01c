"""Language modelling on plain text, by the objective that fits the model.

causal    [BOS] document EOS, cut into windows that overlap by one token: every token is a target once
masked    [CLS] window [SEP]; which tokens are hidden is drawn anew in each epoch (`data.noise`)
span      raw windows, as long as the corrupted input may come from; a decoder writes what was taken out
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar

import torch

from graft.base.base import Base
from graft.core.method import Method
from graft.core.positions import first_position
from graft.data import noise
from graft.data.batches import Batches, TokenBatches, WrittenBatches
from graft.data.encode import IGNORED, Encoded, Encoder, Example, Outcomes
from graft.data.rows import BadRow, Row
from graft.data.templates import end_token
from graft.errors import UsageError
from graft.objectives.lm import language_modelling, token_scores
from graft.stages.stage import Stage

FAMILIES = {
    "causal": "causal",
    "masked": "masked",
    "span": "seq2seq",
}  # objective: the family that learns by it


@dataclass(frozen=True)
class Pretrain(Stage):
    layouts: ClassVar = ("text",)
    objectives: ClassVar = ("causal", "masked", "span")
    metrics: ClassVar = ("perplexity",)
    packs: ClassVar = True
    takes_functions: ClassVar = True
    loss = staticmethod(language_modelling)

    @property
    def writes(self) -> bool:
        return self.objective != "masked"

    def task(self, config: Any, methods: Sequence[type[Method]]) -> str | None:
        return "masked" if self.objective == "masked" else None

    def check_base(self, base: Base) -> None:
        if base.family != FAMILIES[self.objective]:
            raise UsageError(
                f"stage pretrain with objective {self.objective} on {base.name}, a {base.family} model",
                f"a {FAMILIES[self.objective]} model",
                "set objective: masked for an encoder, span for an encoder-decoder, or take another model",
            )

    @classmethod
    def objective_of(cls, family: str) -> str:
        return next((word for word, fitting in FAMILIES.items() if fitting == family), "causal")

    def encoder(self, tokenizer: Any, family: str, settings: Any, labels: Sequence[str] = ()) -> Encoder:
        return Documents(tokenizer, settings.max_length, self.objective, reads=settings.control_tokens)

    def batches(self, base: Base, max_length: int, *, pack: bool = False) -> Batches:
        config = base.model.config
        if self.objective == "span":
            start = getattr(config, "decoder_start_token_id", None)
            return Corrupted(base.tokenizer, max_length, decoder_start=start)
        first = first_position(config)
        if self.objective == "masked":
            size = getattr(config, "vocab_size", None)
            return Hidden(base.tokenizer, max_length, size, causal=False, pack=pack, first_position=first)
        return TokenBatches(
            base.tokenizer, max_length, causal=base.family == "causal", pack=pack, first_position=first
        )

    def scores(self, loss: float, sums: dict[str, float]) -> dict[str, float]:
        return token_scores(loss, sums)


class Documents(Encoder):
    """Cuts documents into windows, none of which loses a token."""

    def __init__(self, tokenizer: Any, max_length: int, objective: str, *, reads: bool = False) -> None:
        super().__init__(tokenizer, max_length, reads=reads)
        self.objective = objective
        self.ends = [end_token(tokenizer)] if objective == "causal" else []

    def encode(self, rows: list[Row], encoded: Encoded) -> Outcomes:
        for row, ids in zip(rows, self.ids([row.value for row in rows]), strict=True):
            if len(ids) < (1 if self.objective == "causal" else 2):
                yield row, BadRow("too short", f"{len(ids)} tokens", "remove the row")
            else:
                yield row, [self._example(window, row) for window in self._windows(ids)]

    def _windows(self, ids: list[int]) -> list[list[int]]:
        if self.objective == "causal":
            ids = [*self.before, *ids, *self.ends]
            size = self.max_length - 1
            return [ids[at : at + size + 1] for at in range(0, len(ids) - 1, size)]
        size = noise.raw_length(self.max_length) if self.objective == "span" else self.room
        count = -(-len(ids) // size)
        edges = [len(ids) * k // count for k in range(count + 1)]  # equal pieces: no tail of one token
        return [ids[a:b] for a, b in pairwise(edges)]

    def _example(self, ids: list[int], row: Row) -> Example:
        if self.objective == "masked":
            labels = [IGNORED if i in self.special else i for i in ids]
            return Example(*self.wrapped(ids, labels), row.source)
        return Example(ids, [IGNORED, *ids[1:]] if self.objective == "causal" else ids, row.source)


class Hidden(TokenBatches):
    """Hides tokens anew in every epoch, which the model then names.

    size: tokens that the model has, of which those are drawn that replace others; None: all of the tokenizer.
    """

    def __init__(self, tokenizer: Any, max_length: int, size: int | None = None, **place: Any) -> None:
        super().__init__(tokenizer, max_length, **place)
        self.size = size
        if tokenizer is not None and tokenizer.mask_token_id is None:
            raise UsageError(
                "objective=masked and a tokenizer without a mask token",
                "one with [MASK] or <mask>",
                "use objective=causal, or another tokenizer",
            )

    def draw(self, example: Example, *address: int) -> Example:
        allowed = torch.tensor(example.labels) != IGNORED
        if not allowed.any():
            return example
        ids = torch.tensor(example.ids)
        hidden, labels = noise.masked(ids, allowed, self.tokenizer.mask_token_id, self._ordinary, *address)
        return Example(hidden.tolist(), labels.tolist(), example.source)

    @cached_property
    def _ordinary(self) -> torch.Tensor:
        special = set(self.tokenizer.all_special_ids)
        size = min(len(self.tokenizer), self.size or len(self.tokenizer))
        return torch.tensor([i for i in range(size) if i not in special])


class Corrupted(WrittenBatches):
    """Takes spans out anew in every epoch, which the decoder then writes."""

    def draw(self, example: Example, *address: int) -> Example:
        ids, eos = torch.tensor(example.ids), self.tokenizer.eos_token_id
        read, written = noise.corrupted(ids, self._sentinels, eos, *address)
        return Example(read, [IGNORED] * len(read), example.source, parts={"written": written})

    @cached_property
    def _sentinels(self) -> list[int]:
        """<extra_id_0>, <extra_id_1>, ... where the tokenizer has them; else its last ids, descending."""
        known = self.tokenizer.get_vocab()
        named = [known[f"<extra_id_{i}>"] for i in range(len(known)) if f"<extra_id_{i}>" in known]
        return named or list(range(len(self.tokenizer) - 1, len(self.tokenizer) // 2, -1))
