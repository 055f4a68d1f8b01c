"""Rows become examples: ids, which of them are learnt, and nothing longer than max_length.

    pretrain causal    [BOS] document EOS, cut into windows that overlap by one token: every token is a target once
    pretrain masked    [CLS] window [SEP], which tokens are hidden is drawn anew in each epoch (order.py)
    pretrain span      raw windows as long as the corrupted input may come from (noise.py)
    sft                conversations, prompt and completion: the answers and the tokens that end them are learnt
    classify           text and the index of its label; or words, and the index of each one's tag at its first token

What is too long is cut at the end and counted; a row that loses all it would teach by that is a reject. So is a row
whose own text spells a special token: it would steer the model as if the template had written it.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from graft.data.mask import Rendered, tokenise
from graft.data.rows import BadRow, Reject, Row
from graft.data.tags import pieces
from graft.data.templates import Template, affixes, source
from graft.errors import DataError

IGNORED = -100  # the label that carries no loss
BATCH = 1024  # rows tokenised at once


@dataclass(slots=True)
class Example:
    """ids and labels: T each, labels not shifted, IGNORED where nothing is learnt.  target: index of the class.

    target_ids: what an encoder-decoder shall write.  tags: T class indices, IGNORED but on the first token of a word.
    source: `file:line`.
    """

    ids: list[int]
    labels: list[int]
    source: str = ""
    target: int | None = None
    target_ids: list[int] | None = None
    tags: list[int] | None = None


@dataclass
class Examples(Sequence[Example]):
    """Many examples in flat arrays, 5 bytes per token; Example objects are made when asked for."""

    ids: array = field(default_factory=lambda: array("i"))
    learnt: bytearray = field(default_factory=bytearray)
    ends: array = field(default_factory=lambda: array("q"))
    targets: array = field(
        default_factory=lambda: array("i")
    )  # class index per example, empty without classes
    target_ids: array = field(default_factory=lambda: array("i"))
    target_ends: array = field(default_factory=lambda: array("q"))
    tags: array = field(
        default_factory=lambda: array("i")
    )  # class index per token, empty without tagged words
    sources: list[str] = field(default_factory=list)

    def add(self, example: Example) -> None:
        self.ids.extend(example.ids)
        self.learnt.extend(label != IGNORED for label in example.labels)
        self.ends.append(len(self.ids))
        self.sources.append(example.source)
        if example.target is not None:
            self.targets.append(example.target)
        if example.target_ids is not None:
            self.target_ids.extend(example.target_ids)
            self.target_ends.append(len(self.target_ids))
        if example.tags is not None:
            self.tags.extend(example.tags)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        i = range(len(self))[i]
        begin, end = self.ends[i - 1] if i else 0, self.ends[i]
        ids = self.ids[begin:end].tolist()
        labels = [t if use else IGNORED for t, use in zip(ids, self.learnt[begin:end], strict=True)]
        written = None
        if self.target_ends:
            written = self.target_ids[self.target_ends[i - 1] if i else 0 : self.target_ends[i]].tolist()
        tags = self.tags[begin:end].tolist() if self.tags else None
        return Example(ids, labels, self.sources[i], self.targets[i] if self.targets else None, written, tags)

    def lengths(self) -> list[int]:
        """T of every example; for an encoder-decoder that of its encoder."""
        return [end - (self.ends[i - 1] if i else 0) for i, end in enumerate(self.ends)]


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


class Encoder:
    """One tokenizer, one stage, one length: rows in, examples out.

    labels: the class names of stage classify, in the order of their indices.
    """

    def __init__(
        self, tokenizer: Any, *, stage: str, objective: str = "causal", family: str = "causal", max_length: int = 1024,
        template: str | None = None, labels: Sequence[str] = (),
    ) -> None:  # fmt: skip
        if stage == "sft" and family not in ("causal", "seq2seq"):
            raise DataError(
                f"Stage sft on a {family} model", "a model that writes text", "use stage=classify"
            )
        self.tokenizer, self.stage, self.objective, self.family = tokenizer, stage, objective, family
        self.max_length, self.asked, self.labels = (
            max_length,
            template,
            {name: i for i, name in enumerate(labels)},
        )
        self.before, self.after = affixes(tokenizer)
        self.room = max_length - len(self.before) - len(self.after)
        self.eos = tokenizer.eos_token_id
        writes = stage == "sft" or (stage == "pretrain" and objective == "causal")
        if writes and self.eos is None:
            raise DataError("The tokenizer has no end-of-text token", "one, so that the model learns to stop",
                            "set eos_token in its tokenizer_config.json")  # fmt: skip
        self.template = Template(tokenizer, source(tokenizer, template)) if stage == "sft" else None
        special = {str(t): i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        special |= dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=False))
        self.special = set(special.values())
        used = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id}
        self.unknown = tokenizer.unk_token_id if tokenizer.unk_token_id not in used else None
        # The unknown token in a text is a gap somebody wrote (WikiText does); every other one would steer the model.
        self.controls = [token for token, i in special.items() if i != self.unknown and token.strip()]

    def __call__(self, rows: Sequence[Row]) -> Encoded:
        """Encode rows in order; every row gives at least one example or exactly one reject."""
        made = Encoded()
        classify = (
            self._tagged if rows and rows[0].kind == "tags" else self._labelled
        )  # load_rows lets no others by
        build = {"pretrain": self._documents, "classify": classify}.get(
            self.stage, self._answers if self.family == "seq2seq" else self._learnt
        )
        for begin in range(0, len(rows), BATCH):
            clean = []
            for row in rows[begin : begin + BATCH]:
                found = next((c for text in row.texts() for c in self.controls if c in text), None)
                if found is None:
                    clean.append(row)
                else:
                    bad = BadRow(
                        "control token",
                        f"{found!r} is no text to this model",
                        "remove it or spell it otherwise",
                    )
                    made.rejects.append(bad.at(row.source))
            for row, outcome in build(clean, made):
                if isinstance(outcome, BadRow):
                    made.rejects.append(outcome.at(row.source))
                    continue
                made.used += 1
                for example in outcome:
                    made.unknown += example.ids.count(self.unknown) if self.unknown is not None else 0
                    made.examples.add(example)
        return made

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []

    def _cut(self, ids: list[int], size: int, row: Row, made: Encoded) -> list[int]:
        if len(ids) > size and (not made.cut or made.cut[-1] != row.source):
            made.cut.append(row.source)
        return ids[:size]

    def _documents(self, rows: list[Row], made: Encoded) -> Iterator[tuple[Row, list[Example] | BadRow]]:
        for row, ids in zip(rows, self._ids([row.value for row in rows]), strict=True):
            if len(ids) < (1 if self.objective == "causal" else 2):
                yield row, BadRow("too short", f"{len(ids)} tokens", "remove the row")
            else:
                yield row, [self._window(window, row) for window in self._windows(ids)]

    def _windows(self, ids: list[int]) -> list[list[int]]:
        if self.objective == "causal":
            ids = [*self.before, *ids, self.eos]
            size = self.max_length - 1
            return [ids[at : at + size + 1] for at in range(0, len(ids) - 1, size)]
        if self.objective == "span":
            from graft.data.noise import (
                raw_length,
            )  # imports torch, which reading and checking rows do without

            size = raw_length(self.max_length)
        else:
            size = self.room
        pieces = -(-len(ids) // size)
        edges = [len(ids) * k // pieces for k in range(pieces + 1)]  # equal pieces: no tail of one token
        return [ids[a:b] for a, b in pairwise(edges)]

    def _window(self, ids: list[int], row: Row) -> Example:
        if self.objective == "masked":
            labels = [IGNORED if i in self.special else i for i in ids]
            wrap = [IGNORED] * len(self.before), [IGNORED] * len(self.after)
            return Example(self.before + ids + self.after, wrap[0] + labels + wrap[1], row.source)
        return Example(ids, [IGNORED, *ids[1:]] if self.objective == "causal" else ids, row.source)

    def _labelled(self, rows: list[Row], made: Encoded) -> Iterator[tuple[Row, list[Example] | BadRow]]:
        for row, ids in zip(rows, self._ids([row.value[0] for row in rows]), strict=True):
            target = self.labels.get(str(row.value[1]))
            if target is None:
                yield (
                    row,
                    BadRow("unknown label", f"{row.value[1]!r} is in no training row", "correct the label"),
                )
            elif not ids:
                yield row, BadRow("too short", "no token", "remove the row")
            else:
                ids = self.before + self._cut(ids, self.room, row, made) + self.after
                yield row, [Example(ids, [IGNORED] * len(ids), row.source, target)]

    def _tagged(self, rows: list[Row], made: Encoded) -> Iterator[tuple[Row, list[Example] | BadRow]]:
        for row, (ids, of) in zip(rows, pieces([row.value[0] for row in rows], self.tokenizer), strict=True):
            words, tags = row.value
            unknown = next((tag for tag in tags if tag not in self.labels), None)
            silent = next((words[k] for k in sorted(set(range(len(words))) - set(of))), None)
            if unknown is not None:
                yield row, BadRow("unknown label", f"{unknown!r} is in no training row", "correct the tag")
            elif silent is not None:
                yield row, BadRow("word without a token", f"{silent!r}", "remove it and its tag")
            else:
                first = [k == 0 or of[k] != of[k - 1] for k in range(len(of))]
                classes = [
                    self.labels[tags[word]] if use else IGNORED for word, use in zip(of, first, strict=True)
                ]
                wrap = [IGNORED] * len(self.before), [IGNORED] * len(self.after)
                ids = self.before + self._cut(ids, self.room, row, made) + self.after
                learnt = wrap[0] + classes[: self.room] + wrap[1]
                yield row, [Example(ids, [IGNORED] * len(ids), row.source, tags=learnt)]

    def _answers(self, rows: list[Row], made: Encoded) -> Iterator[tuple[Row, list[Example] | BadRow]]:
        """Encoder-decoders: everything before the last answer is read, the last answer is written."""
        for row in rows:
            try:
                row = self._as_chat(row)
                if row.kind == "text":
                    raise BadRow(
                        "no prompt", "a text alone", "give prompt and completion, or use stage=pretrain"
                    )
                asked, answer = row.value[0], row.value[-1]
                if row.kind == "chat":
                    asked = self.template.render(row.value[:-1], row.tools, ask=True)  # type: ignore[union-attr]
                    answer = answer["content"]
            except BadRow as bad:
                yield row, bad
                continue
            read, write = self._ids([asked, answer])
            read = self.before + self._cut(read, self.room, row, made) + self.after
            write = self._cut([*write, self.eos], self.max_length, row, made)
            if self.unknown in write:
                yield row, _unknown([], write.count(self.unknown))
            else:
                yield row, [Example(read, [IGNORED] * len(read), row.source, target_ids=write)]

    def _learnt(self, rows: list[Row], made: Encoded) -> Iterator[tuple[Row, list[Example] | BadRow]]:
        rendered: list[tuple[Row, Rendered]] = []
        for row in rows:
            try:
                rendered.append((row, self._rendered(self._as_chat(row))))
            except BadRow as bad:
                yield row, bad
        tokens = tokenise([text for _, text in rendered], self.tokenizer)
        for (row, text), (ids, learnt, where) in zip(rendered, tokens, strict=True):
            learnt[0] = False  # nothing comes before it from which it could be told
            lost = [
                k for k, (i, use) in enumerate(zip(ids, learnt, strict=True)) if use and i == self.unknown
            ]
            if lost and self.unknown is not None:
                at = [where[k - len(text.head)] for k in lost] if where else []
                yield row, _unknown([text.text[a:b] for a, b in at], len(lost))
            elif not any(learnt):
                yield row, BadRow("nothing to learn", "no token of an answer", "fill the answer")
            elif not any(learnt[: self.max_length]):
                yield row, BadRow("cut away", f"the answer begins behind token {learnt.index(True)} of {len(ids)}",
                                  "raise data.max_length or shorten the prompt")  # fmt: skip
            else:
                made.altered += text.altered
                ids = self._cut(ids, self.max_length, row, made)
                labels = [i if use else IGNORED for i, use in zip(ids, learnt, strict=False)]
                yield row, [Example(ids, labels, row.source)]

    def _as_chat(self, row: Row) -> Row:
        """Texts stay texts, unless a template is asked for by name: then prompt and completion are a conversation."""
        if row.kind != "pair" or self.asked is None:
            return row
        turns = [{"role": "user", "content": row.value[0]}, {"role": "assistant", "content": row.value[1]}]
        return Row(row.source, "chat", turns)

    def _rendered(self, row: Row) -> Rendered:
        if row.kind == "chat":
            return self.template.learn(row)  # type: ignore[union-attr]
        if row.kind == "text":
            return Rendered(row.value, [], [(0, len(row.value))], self.before, [self.eos])
        prompt, answer = row.value
        gap = (
            "" if prompt[-1:].isspace() or answer[:1].isspace() else " "
        )  # words that touch would be one token
        text, start = prompt + gap + answer, len(prompt)
        return Rendered(text, [start], [(start, len(text))], self.before, [self.eos])


def _unknown(characters: list[str], count: int) -> BadRow:
    shown = " ".join(map(repr, dict.fromkeys(characters)))[:40]
    return BadRow("unknown characters", f"{count} in the answer {shown}".rstrip(),
                  "replace them, or use a tokenizer that knows them")  # fmt: skip
