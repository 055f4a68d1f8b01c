"""Rows become examples: the ids that the model reads, which of them are learnt, and nothing longer than max_length.

What a row becomes is the stage's business: it derives from `Encoder` and says how a batch of its rows is encoded.
What is the same for all of them is here. A row that is too long is cut at the end and counted. A row is rejected if
the cut removes everything it would teach, or if its text spells a special token, which would steer the model as if
the template had written it.
"""

from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from graft.data.rows import BadRow, Reject, Row
from graft.data.templates import affixes

IGNORED = -100  # the label that carries no loss
BATCH = 1024  # rows tokenised at once


@dataclass(slots=True)
class Example:
    """One row as the model meets it.

    ids, labels: T each; labels are not shifted, and IGNORED where nothing is learnt.  source: `file:line`.
    target: one number for the whole row, such as the index of its class.
    parts: further sequences that a stage needs, by name: what a decoder writes, the class of every token, ...
    """

    ids: list[int]
    labels: list[int]
    source: str = ""
    target: int | None = None
    parts: Mapping[str, list[int]] = field(default_factory=dict)


@dataclass
class Column:
    """Sequences of numbers of many examples, one behind the other.  ends: where each of them ends."""

    values: array = field(default_factory=lambda: array("i"))
    ends: array = field(default_factory=lambda: array("q"))

    def add(self, sequence: Sequence[int]) -> None:
        self.values.extend(sequence)
        self.ends.append(len(self.values))

    def __getitem__(self, i: int) -> list[int]:
        return self.values[self.ends[i - 1] if i else 0 : self.ends[i]].tolist()


@dataclass
class Examples(Sequence[Example]):
    """Many examples in flat arrays, 5 bytes per token; Example objects are made when asked for.

    targets: one per example, or empty.  parts: of each name a Column, the same names for every example.
    """

    ids: Column = field(default_factory=Column)
    learnt: bytearray = field(default_factory=bytearray)
    targets: array = field(default_factory=lambda: array("i"))
    parts: dict[str, Column] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)

    def add(self, example: Example) -> None:
        """Append one example."""
        self.ids.add(example.ids)
        self.learnt.extend(label != IGNORED for label in example.labels)
        self.sources.append(example.source)
        if example.target is not None:
            self.targets.append(example.target)
        for name, sequence in example.parts.items():
            self.parts.setdefault(name, Column()).add(sequence)

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        i = range(len(self))[i]
        ids, begin = self.ids[i], self.ids.ends[i - 1] if i else 0
        learnt = self.learnt[begin : begin + len(ids)]
        return Example(
            ids,
            [token if use else IGNORED for token, use in zip(ids, learnt, strict=True)],
            self.sources[i],
            self.targets[i] if self.targets else None,
            {name: column[i] for name, column in self.parts.items()},
        )

    def lengths(self) -> list[int]:
        """Return T of every example; for an encoder-decoder that of its encoder."""
        ends = self.ids.ends
        return [end - (ends[i - 1] if i else 0) for i, end in enumerate(ends)]


@dataclass
class Encoded:
    """What became of some rows.

    cut: sources of shortened rows.  altered: turns the template rewrote.  unknown: tokens that are the unknown one.
    """

    examples: Examples = field(default_factory=Examples)
    rejects: list[Reject] = field(default_factory=list)
    used: int = 0
    cut: list[str] = field(default_factory=list)
    altered: int = 0
    unknown: int = 0


Outcomes = Iterator[tuple[Row, list[Example] | BadRow]]  # of each row its examples, or why it has none


class Encoder(ABC):
    """Encode the rows of one stage with one tokenizer at one length."""

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.before, self.after = affixes(tokenizer)
        self.room = max_length - len(self.before) - len(self.after)
        special = {str(t): i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        special |= dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=False))
        self.special = set(special.values())
        used = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id}
        self.unknown = tokenizer.unk_token_id if tokenizer.unk_token_id not in used else None
        # The unknown token in a text is a gap somebody wrote (WikiText does); any other would steer the model.
        self._controls = [token for token, i in special.items() if i != self.unknown and token.strip()]

    @abstractmethod
    def encode(self, rows: list[Row], encoded: Encoded) -> Outcomes:
        """Yield each row with its examples, or with the reason why it has none. May count into `encoded`."""

    def __call__(self, rows: Sequence[Row]) -> Encoded:
        """Encode rows in order; every row gives at least one example or exactly one reject."""
        encoded = Encoded()
        for begin in range(0, len(rows), BATCH):
            clean = []
            for row in rows[begin : begin + BATCH]:
                control = next((c for text in row.texts() for c in self._controls if c in text), None)
                if control is None:
                    clean.append(row)
                else:
                    given = f"{control!r} is no text to this model"
                    bad = BadRow("control token", given, "remove it or spell it differently")
                    encoded.rejects.append(bad.at(row.source))
            for row, outcome in self.encode(clean, encoded):
                if isinstance(outcome, BadRow):
                    encoded.rejects.append(outcome.at(row.source))
                    continue
                encoded.used += 1
                for example in outcome:
                    encoded.unknown += example.ids.count(self.unknown) if self.unknown is not None else 0
                    encoded.examples.add(example)
        return encoded

    def ids(self, texts: list[str]) -> list[list[int]]:
        """Return the tokens of each text, without special ones around them."""
        if not texts:
            return []
        return self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]

    def cut(self, ids: list[int], size: int, row: Row, encoded: Encoded) -> list[int]:
        """Return at most `size` ids, and note the row if some are lost."""
        if len(ids) > size and (not encoded.cut or encoded.cut[-1] != row.source):
            encoded.cut.append(row.source)
        return ids[:size]

    def wrapped(self, ids: list[int], labels: list[int]) -> tuple[list[int], list[int]]:
        """Return ids and labels with the special tokens that the tokenizer puts around a text; those are not learnt."""
        before, after = [IGNORED] * len(self.before), [IGNORED] * len(self.after)
        return self.before + ids + self.after, before + labels + after
