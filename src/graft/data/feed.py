"""Which rows make which step: a pure function of (seed, epoch, step), and the batches themselves.

A step is `batch_size` rows of the epoch's permutation, the last one what is left. Packing, bucketing and the size of
micro-batches decide how these rows lie in memory, never what the step learns. Nothing here has state to save.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from graft.data import noise
from graft.data.encode import IGNORED, Example
from graft.data.pack import best_fit, packed, rounded
from graft.errors import UsageError

MEGA = 50  # batches sorted together by length when rows are padded
_ORDER, _BATCHES, _NOISE = range(3)  # streams of random numbers


@dataclass
class Batch:
    """A micro-batch.  inputs: keywords of the model, input_ids and attention_mask among them.

    attention_mask: (B, T), or (B, 1, T, T) bool when packed, then with position_ids (B, T).
    labels: (B, T) not shifted, IGNORED where nothing is learnt; of the decoder if there is one; classify: (B,) classes,
    of tagged words (B, T).
    tokens: supervised positions that count.  sources: `file:line` of every row inside.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    tokens: int
    sources: list[str]

    def to(self, device: Any) -> "Batch":
        moved = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        return Batch(moved, self.labels.to(device), self.tokens, self.sources)


@dataclass
class Feed:
    """The batches of a training run or of an evaluation (`step(0, i)`).

    max_length: tokens of a packed row.  pack: documents of one step share rows (causal and masked models).
    first_position: of packed documents, `pack.first_position(config)`.  decoder_start: None is the pad token.
    group_by_length: sort rows by length over MEGA batches; None: when not packing.
    """

    examples: Sequence[Example]
    tokenizer: Any
    batch_size: int = 16
    micro_batch_size: int = 2
    max_length: int = 1024
    pack: bool = True
    seed: int = 0
    stage: str = "sft"
    objective: str = "causal"
    family: str = "causal"
    first_position: int = 0
    decoder_start: int | None = None
    group_by_length: bool | None = None

    def __post_init__(self) -> None:
        self.seq2seq = self.family == "seq2seq" or self.objective == "span"
        self.packs = self.pack and self.stage != "classify" and not self.seq2seq
        self.causal = self.family == "causal" and self.objective != "masked"
        kept = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        self.pad = next(
            i for i in kept if i is not None
        )  # which id pads is all the same: masks come from lengths
        if self.objective == "masked" and self.tokenizer.mask_token_id is None:
            raise UsageError("objective=masked and a tokenizer without a mask token", "one with [MASK] or <mask>",
                             "use objective=causal, or another tokenizer")  # fmt: skip
        self._permuted: tuple[int, list[int]] | None = None

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.examples) // self.batch_size)

    def step(self, epoch: int, index: int) -> list[Batch]:
        """The micro-batches of one optimiser step. Pure: equal arguments give equal batches, at any time."""
        if not 0 <= index < self.steps_per_epoch:
            raise IndexError(f"step {index} of {self.steps_per_epoch}")
        rows = self._order(epoch)[index * self.batch_size : (index + 1) * self.batch_size]
        return self._micro_batches([self._drawn(self.examples[row], epoch, row) for row in rows])

    def longest(self) -> Batch:
        """A micro-batch as large as any that can come: of the step that would hold the longest rows."""
        rows = sorted(range(len(self.examples)), key=lambda row: -self._lengths[row])[: self.batch_size]
        batches = self._micro_batches([self._drawn(self.examples[row], 0, row) for row in rows])
        return max(batches, key=lambda batch: batch.inputs["input_ids"].numel())

    def _micro_batches(self, examples: list[Example]) -> list[Batch]:
        # Longest first: rows of one micro-batch have about one length, and a step that does not fit fails at once.
        examples.sort(key=lambda example: -len(example.ids))
        size = self.micro_batch_size
        if self.packs:
            groups = best_fit([len(example.ids) for example in examples], self.max_length)
            rows_of = [[examples[i] for i in group] for group in groups]
            return [self._packed(rows_of[at : at + size]) for at in range(0, len(rows_of), size)]
        return [self._padded(examples[at : at + size]) for at in range(0, len(examples), size)]

    def _order(self, epoch: int) -> list[int]:
        """The rows of this epoch in the order they are seen."""
        if self._permuted is None or self._permuted[0] != epoch:
            rows = noise.shuffled(len(self.examples), self.seed, epoch, _ORDER).tolist()
            if not self.packs if self.group_by_length is None else self.group_by_length:
                rows = self._bucketed(rows, epoch)
            self._permuted = epoch, rows
        return self._permuted[1]

    def _bucketed(self, rows: list[int], epoch: int) -> list[int]:
        """Batches of similar length, in random order; the batch that is not full stays the last."""
        size, lengths = self.batch_size, self._lengths
        batches: list[list[int]] = []
        for at in range(0, len(rows) - len(rows) % size, MEGA * size):
            mega = sorted(
                rows[: len(rows) - len(rows) % size][at : at + MEGA * size], key=lambda row: -lengths[row]
            )
            batches += [mega[b : b + size] for b in range(0, len(mega), size)]
        order = noise.shuffled(len(batches), self.seed, epoch, _BATCHES).tolist()
        return [row for b in order for row in batches[b]] + rows[len(batches) * size :]

    @cached_property
    def _lengths(self) -> list[int]:
        known = getattr(self.examples, "lengths", None)
        return known() if known else [len(example.ids) for example in self.examples]

    def _drawn(self, example: Example, epoch: int, row: int) -> Example:
        """The example with this epoch's noise."""
        if self.stage != "pretrain" or self.objective == "causal":
            return example
        ids, address = torch.tensor(example.ids), (self.seed, epoch, _NOISE, row)
        if self.objective == "span":
            read, write = noise.corrupted(ids, self._sentinels, self.tokenizer.eos_token_id, *address)
            return Example(read, [IGNORED] * len(read), example.source, target_ids=write)
        allowed = torch.tensor(example.labels) != IGNORED
        if not allowed.any():
            return example
        ids, labels = noise.masked(ids, allowed, self.tokenizer.mask_token_id, self._ordinary, *address)
        return Example(ids.tolist(), labels.tolist(), example.source)

    @cached_property
    def _ordinary(self) -> Tensor:
        special = set(self.tokenizer.all_special_ids)
        return torch.tensor([i for i in range(len(self.tokenizer)) if i not in special])

    @cached_property
    def _sentinels(self) -> list[int]:
        """<extra_id_0>, <extra_id_1>, ... where the tokenizer has them; else the vocabulary's last ids, descending."""
        known = self.tokenizer.get_vocab()
        named = [known[f"<extra_id_{i}>"] for i in range(len(known)) if f"<extra_id_{i}>" in known]
        return named or list(range(len(self.tokenizer) - 1, len(self.tokenizer) // 2, -1))

    def _packed(self, groups: list[list[Example]]) -> Batch:
        pairs = [[(example.ids, example.labels) for example in group] for group in groups]
        inputs, labels = packed(
            pairs, pad=self.pad, causal=self.causal, first_position=self.first_position, limit=self.max_length
        )
        return Batch(
            inputs, labels, self._count(labels), [example.source for group in groups for example in group]
        )

    def _padded(self, examples: list[Example]) -> Batch:
        ids, live = self._rectangle([example.ids for example in examples], self.pad)
        inputs = {"input_ids": ids, "attention_mask": live}
        sources = [example.source for example in examples]
        if examples[0].tags is not None:
            labels = self._rectangle([example.tags or [] for example in examples], IGNORED)[0]
            return Batch(inputs, labels, int((labels != IGNORED).sum()), sources)
        if self.stage == "classify":
            return Batch(
                inputs, torch.tensor([example.target for example in examples]), len(examples), sources
            )
        if not self.seq2seq:
            labels = self._rectangle([example.labels for example in examples], IGNORED)[0]
            return Batch(inputs, labels, self._count(labels), sources)
        labels = self._rectangle([example.target_ids or [] for example in examples], IGNORED)[0]
        start = self.pad if self.decoder_start is None else self.decoder_start
        shifted = torch.cat([torch.full_like(labels[:, :1], start), labels[:, :-1]], 1)
        inputs["decoder_input_ids"] = shifted.masked_fill(shifted == IGNORED, self.pad)
        return Batch(inputs, labels, int((labels != IGNORED).sum()), sources)

    def _count(self, labels: Tensor) -> int:
        return int(((labels[:, 1:] if self.causal else labels) != IGNORED).sum())

    def _rectangle(self, rows: Sequence[list[int]], fill: int) -> tuple[Tensor, Tensor]:
        """Rows filled up on the right to one length, and (B, T) int64 with 1 where a row is."""
        width = rounded(max(map(len, rows)), self.max_length)
        values = torch.tensor([row + [fill] * (width - len(row)) for row in rows])
        return values, torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
