"""Rows become examples: the ids that the model reads, and which are learnt, never more than max_length.

A stage derives from `Encoder` and decides what its rows become; the rules that hold for every stage are here.
A row that is too long is cut at the end and counted. A row is rejected if the cut removes everything it would
teach, or if its text contains a special token, which would steer the model as if the template had written it;
unless it is known that a template did write it (`Encoder.holds_tokens`).
"""

from abc import ABC, abstractmethod
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from graft.data.rows import BadRow, Reject, Row
from graft.data.scratch import Numbers, Sources
from graft.data.templates import affixes
from graft.data.tokenising import beginnings, encode

IGNORED = -100  # the label that carries no loss
TOKEN_TYPES = "token_types"  # the part that says to which of two texts each id belongs; never learnt
ROW = "row"  # the part of a prompt that holds its row as bytes of JSON
# Parts that are no tokens: of rankings where answers end, their scores, which of their tokens are learnt.
NUMBERS = ("ends", "scores", "learnt", ROW)
OTHER = "other"  # the part of a judged example with the answer to another prompt; never learnt
ROWS_AT_ONCE = 1024  # that are tokenised in one call


@dataclass(slots=True)
class Example:
    """What the model sees of one row, or of one window of a long text.

    ids, labels: T each; labels are not shifted, and IGNORED where nothing is learnt.  source: `file:line`.
    target: one number for the whole row, such as the index of its class.
    parts: further sequences that a stage needs, by name: what a decoder writes, the class of every token, ...
    reference: log-probability of each answer under the reference, where a stage has measured it.
    numbers: by name, a number for each token of all answers, where the model wrote them itself.
    """

    ids: list[int]
    labels: list[int]
    source: str = ""
    target: int | None = None
    parts: Mapping[str, list[int]] = field(default_factory=dict)
    reference: Sequence[float] = ()
    numbers: Mapping[str, Sequence[float]] = field(default_factory=dict)


@dataclass
class Column:
    """One sequence of numbers per example, all of them in one flat array.  ends: where each of them ends."""

    values: Numbers = field(default_factory=lambda: Numbers("i"))
    ends: array = field(default_factory=lambda: array("q"))

    def add(self, sequence: Sequence[int]) -> None:
        """Append the sequence of one example."""
        self.values.extend(sequence)
        self.ends.append(len(self.values))

    def __getitem__(self, i: int) -> list[int]:
        return self.values[self.ends[i - 1] if i else 0 : self.ends[i]].tolist()


@dataclass
class Examples(Sequence[Example]):
    """Many examples in flat arrays, 5 bytes per token. An Example is built each time that one is read.

    Of many tokens most lie on the disk (`scratch.Numbers`).

    learnt: one byte per id, 1 if it is a target.  targets: one per example, or empty.
    parts: one Column per name, empty where an example has no such part.
    reference: one sequence per example (`Example.reference`), or empty; no file of the cache has it.
    """

    ids: Column = field(default_factory=Column)
    learnt: Numbers = field(default_factory=lambda: Numbers("B"))
    targets: array = field(default_factory=lambda: array("i"))
    parts: dict[str, Column] = field(default_factory=dict)
    sources: Sources = field(default_factory=Sources)
    reference: Sequence[Sequence[float]] = ()

    def add(self, example: Example) -> None:
        """Append one example."""
        self.ids.add(example.ids)
        self.learnt.extend(label != IGNORED for label in example.labels)
        self.sources.append(example.source)
        if example.target is not None:
            self.targets.append(example.target)
        for name in example.parts.keys() - self.parts.keys():
            self.parts[name] = Column(ends=array("q", [0] * (len(self) - 1)))
        for name, column in self.parts.items():
            column.add(example.parts.get(name, []))

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
            self.reference[i] if self.reference else (),
        )

    def lengths(self) -> list[int]:
        """Return T of every example: its number of ids, which for an encoder-decoder are the encoder's.

        Of a ranking: the ids of the prompt and of the longest answer.
        """
        ends = self.ids.ends
        lengths = [end - (ends[i - 1] if i else 0) for i, end in enumerate(ends)]
        if "ends" not in self.parts:
            return lengths
        answers = (pairwise([0, *self.parts["ends"][i]]) for i in range(len(self)))
        return [n + max((b - a for a, b in own), default=0) for n, own in zip(lengths, answers, strict=True)]


@dataclass
class Encoded:
    """The result of encoding some rows.

    used: rows that gave examples.  cut: sources of shortened rows.
    unknown: how often the unknown token occurs.  rendered: rows whose control tokens are read as tokens.
    altered: turns that the template writes differently from what the model would generate.
    unused: what rows say and the model does not read, with the number of rows: `Row.unused`, and what the
    encoder finds.
    """

    examples: Examples = field(default_factory=Examples)
    rejects: list[Reject] = field(default_factory=list)
    used: int = 0
    cut: list[str] = field(default_factory=list)
    altered: int = 0
    unknown: int = 0
    rendered: int = 0
    unused: Counter[str] = field(default_factory=Counter)


# Each row with its examples, or with the reason why it has none.
Outcomes = Iterator[tuple[Row, list[Example] | BadRow]]


class Encoder(ABC):
    """Encode the rows of one stage with one tokenizer.

    max_length: tokens of an example.  before, after: ids that the tokenizer puts around every text.
    room: tokens that are left between these two.  special: all ids with a meaning of their own.
    unknown: the id for characters outside the vocabulary; None if the tokenizer has none.
    reads: special tokens in texts, and in prompts with their completions, are read as tokens.
    """

    def __init__(self, tokenizer: Any, max_length: int, *, reads: bool = False) -> None:
        self.tokenizer = tokenizer
        self.reads = reads
        self.max_length = max_length
        self.before, self.after = affixes(tokenizer)
        self.room = max_length - len(self.before) - len(self.after)
        special = {str(t): i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        special |= dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=False))
        self.special = set(special.values())
        used = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id}
        self.unknown = tokenizer.unk_token_id if tokenizer.unk_token_id not in used else None
        # The unknown token may stand in a text, for a gap (as in WikiText). Others would steer the model.
        self._controls = [token for token, i in special.items() if i != self.unknown and token.strip()]

    @abstractmethod
    def encode(self, rows: list[Row], encoded: Encoded) -> Outcomes:
        """Yield each row with its examples, or with the reason why it has none.

        encoded: where `cut` and `altered` are counted; the caller stores everything else.
        """

    def __call__(self, rows: Sequence[Row]) -> Encoded:
        """Encode rows in order; every row gives at least one example or exactly one reject."""
        encoded = Encoded()
        for begin in range(0, len(rows), ROWS_AT_ONCE):
            clean = self._without_controls(rows[begin : begin + ROWS_AT_ONCE], encoded)
            for row, outcome in self.encode(clean, encoded):
                if isinstance(outcome, BadRow):
                    encoded.rejects.append(outcome.at(row.source))
                    continue
                encoded.used += 1
                encoded.unused.update(row.unused)
                for example in outcome:
                    encoded.unknown += example.ids.count(self.unknown) if self.unknown is not None else 0
                    encoded.examples.add(example)
        return encoded

    def _without_controls(self, rows: Sequence[Row], encoded: Encoded) -> list[Row]:
        """Return the rows whose texts contain no special token, or rightly; reject the others."""
        clean = []
        for row in rows:
            control = next((c for text in row.texts() for c in self._controls if c in text), None)
            if control is None:
                clean.append(row)
            elif self.holds_tokens(row):
                encoded.rendered += 1
                clean.append(row)
            else:
                detail = f"{control!r} is a control token of this model, not text"
                remedy = "remove it or spell it differently"
                if row.plain:
                    remedy += "; data.control_tokens=true reads it as the token"
                encoded.rejects.append(BadRow("control token", detail, remedy).at(row.source))
        return clean

    def holds_tokens(self, row: Row) -> bool:
        """Return whether special tokens in a row are meant as tokens: a template wrote it before."""
        return self.reads and row.plain

    def ids(self, texts: list[str], most: int | None = None) -> list[list[int]]:
        """Return the ids of each text, without special tokens around them.

        most: how many are of use; a text that is much longer gives more than these, and not all.
        """
        if most is not None:
            return beginnings(self.tokenizer, texts, most)
        return encode(self.tokenizer, texts)[0]

    def cut(self, ids: list[int], size: int, row: Row, encoded: Encoded) -> list[int]:
        """Return the first `size` ids; note the row in `encoded.cut` if some are lost."""
        if len(ids) > size and (not encoded.cut or encoded.cut[-1] != row.source):
            encoded.cut.append(row.source)
        return ids[:size]

    def wrapped(self, ids: list[int], labels: list[int]) -> tuple[list[int], list[int]]:
        """Return ids and labels with the tokenizer's special tokens around them, which are not learnt."""
        before, after = [IGNORED] * len(self.before), [IGNORED] * len(self.after)
        return self.before + ids + self.after, before + labels + after
