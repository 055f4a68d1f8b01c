"""Classification: a class for every text, or for every word of it, by a head that the adapter brings.

text, label          [CLS] text [SEP], and the index of its label
text, text, label    [CLS] text [SEP] text [SEP], joined as the tokenizer joins two texts
words, tags          the tokens of all words, and the index of each word's tag at its first token
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from graft.base.adapter import Adapter
from graft.base.base import Base
from graft.core.method import Method
from graft.core.registry import classifying
from graft.data.batches import Batch, Batches
from graft.data.encode import IGNORED, TOKEN_TYPES, Encoded, Encoder, Example, Outcomes
from graft.data.rows import BadRow, Row
from graft.data.tags import word_pieces
from graft.data.tokenising import LETTERS, SPARE
from graft.errors import UsageError
from graft.models.load import is_masked
from graft.objectives.classify import classification
from graft.stages.stage import Stage


@dataclass(frozen=True)
class Classify(Stage):
    layouts: ClassVar = ("classification", "tags")
    metrics: ClassVar = ("accuracy", "precision", "recall", "f1")
    labelled: ClassVar = True
    headed: ClassVar = True
    counts: ClassVar = "rows"
    aligned: ClassVar = ("tags", TOKEN_TYPES)
    takes_functions: ClassVar = True
    loss = staticmethod(classification)

    def task(self, config: Any, methods: Sequence[type[Method]]) -> str | None:
        """Load a masked model as an encoder: only methods that read through its word head need that."""
        if any(method.word_head for method in methods):
            return None
        return "encoder" if is_masked(config) else None

    def methods(self, methods: Sequence[Method], labels: Sequence[str], *, tagged: bool) -> list[Method]:
        return classifying(methods, labels, tagged=tagged)

    def fit(self, adapter: Adapter, labels: Sequence[str], *, tagged: bool) -> None:
        """Give a head without names those of the rows' classes.

        Raises UsageError for a head of other classes, and for one that pools where every word has a class.
        """
        head = adapter.head
        if head is None:
            return
        if (head.labels and list(head.labels) != list(labels)) or head.num_labels != len(labels):
            known = ", ".join(head.labels) or f"{head.num_labels} without names"
            raise UsageError(
                f"the adapter knows the classes {known}; the rows have {', '.join(labels)}",
                "the same classes in both",
                "train a new adapter on these rows, or give rows of the adapter's classes",
            )
        if head.every_token != tagged:
            raise UsageError(
                f"{head.name()} for rows with one {'tag per word' if tagged else 'label per text'}",
                "a task head with pool='none' for tagged words, another pool for texts",
                "leave pool out of the recipe, or attach TaskHead(pool='none')"
                if tagged
                else "choose another pool",
            )
        named = replace(head, labels=tuple(labels))
        adapter.methods = tuple(named if method is head else method for method in adapter.methods)

    def encoder(self, tokenizer: Any, family: str, settings: Any, labels: Sequence[str] = ()) -> Encoder:
        return Labelled(tokenizer, settings.max_length, labels)

    def batches(self, base: Base, max_length: int, *, pack: bool = False) -> Batches:
        heads = [adapter.head for adapter in base.adapters.values() if adapter.head is not None]
        tagged = any(head.every_token for head in heads)
        types = getattr(base.model.config, "type_vocab_size", None) or 0
        return ClassBatches(base.tokenizer, max_length, tagged=tagged, token_types=types > 1)

    def scores(self, loss: float, sums: dict[str, float]) -> dict[str, float]:
        return {"loss": loss, "accuracy": sums["correct"] / sums["tokens"], "tokens": sums["tokens"]}

    def questions(self, rows: Sequence[Row]) -> list[str]:
        texts = (list(row.asked) if row.kind == "label" else [" ".join(row.value[0])] for row in rows)
        return [text[0] for text in texts if len(text) == 1]

    def pieces(self, example: Example, tokenizer: Any, labels: Sequence[str]) -> list[list[Any]] | None:
        if example.target is not None:
            text = tokenizer.decode(example.ids, skip_special_tokens=False)
            return [[text, False], [labels[example.target], True]]
        special, words = set(tokenizer.all_special_ids), list[tuple[list[int], int]]()
        for token, tag in zip(example.ids, example.parts["tags"], strict=True):
            if not words or tag != IGNORED or token in special:
                words.append(([], tag))
            words[-1][0].append(token)
        shown = [(tokenizer.decode(ids), tag) for ids, tag in words]
        silent = [tag == IGNORED or labels[tag] == "O" for _, tag in shown]  # `O` is left unsaid
        return [
            [text if quiet else f"{text}/{labels[tag]}", tag != IGNORED]
            for (text, tag), quiet in zip(shown, silent, strict=True)
        ]


class Labelled(Encoder):
    """Encodes texts with a label, or words with tags.  labels: names of the classes, by index."""

    def __init__(self, tokenizer: Any, max_length: int, labels: Sequence[str]) -> None:
        super().__init__(tokenizer, max_length)
        self.labels = {name: i for i, name in enumerate(labels)}

    def encode(self, rows: list[Row], encoded: Encoded) -> Outcomes:
        if rows and rows[0].kind == "tags":  # load_rows lets no mixture pass
            return self._tagged(rows, encoded)
        return self._labelled(rows, encoded)

    def _labelled(self, rows: list[Row], encoded: Encoded) -> Outcomes:
        pairs = iter(self._pairs([row for row in rows if len(row.asked) == 2], encoded))
        texts = [row.value[0] for row in rows if len(row.asked) == 1]
        alone = iter(self.ids(texts, self.room))
        for row in rows:
            pair = next(pairs) if len(row.asked) == 2 else None
            ids = pair[0] if pair else next(alone)
            target = self.labels.get(str(row.value[1]))
            if target is None:
                given = f"{row.value[1]!r} is in no training row"
                yield row, BadRow("unknown label", given, "correct the label")
            elif not ids:
                yield row, BadRow("too short", "no token", "remove the row")
            elif pair:
                yield row, [Example(ids, [IGNORED] * len(ids), row.source, target, pair[1])]
            else:
                ids = self.cut(ids, self.room, row, encoded)
                yield row, [Example(*self.wrapped(ids, [IGNORED] * len(ids)), row.source, target)]

    def _pairs(self, rows: list[Row], encoded: Encoded) -> list[tuple[list[int], dict[str, list[int]]]]:
        """Return (ids with special tokens, parts) of rows with two texts, as transformers encodes them.

        Of a pair that is too long the longer text is cut. The parts are the token types, if the tokenizer
        gives any.
        """
        if not rows:
            return []
        longest = 4 * LETTERS * self.max_length + SPARE  # what is behind them is cut away in any case
        asked = ([text[:longest] for text in row.asked] for row in rows)
        first, second = map(list, zip(*asked, strict=True))
        whole = self.tokenizer(first, second, verbose=False)
        for row, ids in zip(rows, whole["input_ids"], strict=True):
            self.cut(ids, self.max_length, row, encoded)
        cut = self.tokenizer(first, second, truncation="longest_first", max_length=self.max_length)
        types = cut.get("token_type_ids")
        parts = [{TOKEN_TYPES: row} for row in types] if types else [{}] * len(rows)
        return list(zip(cut["input_ids"], parts, strict=True))

    def _tagged(self, rows: list[Row], encoded: Encoded) -> Outcomes:
        split = word_pieces([row.value[0] for row in rows], self.tokenizer)
        for row, (ids, of) in zip(rows, split, strict=True):
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
                ids, learnt = self.wrapped(self.cut(ids, self.room, row, encoded), classes[: self.room])
                yield row, [Example(ids, [IGNORED] * len(ids), row.source, parts={"tags": learnt})]


class ClassBatches(Batches):
    """Labels are (B,) classes of rows, or (B, T) classes of words at their first tokens.

    tagged: whether `full` stands for rows with a class for every word; other batches tell by their examples.
    token_types: whether the model tells the two texts of a row apart by embeddings of their own.
    """

    def __init__(
        self, tokenizer: Any, max_length: int, *, tagged: bool = False, token_types: bool = False
    ) -> None:
        super().__init__(tokenizer, max_length)
        self.tagged = tagged
        self.token_types = token_types

    def inputs(self, examples: Sequence[Example]) -> tuple[dict[str, torch.Tensor], list[str]]:
        inputs, sources = super().inputs(examples)
        types = [example.parts.get(TOKEN_TYPES, []) for example in examples]
        if self.token_types and any(types):
            width = inputs["input_ids"].shape[1]
            rows = [[*row, *[self.tokenizer.pad_token_type_id] * (width - len(row))] for row in types]
            inputs["token_type_ids"] = torch.tensor(rows)
        return inputs, sources

    def padded(self, examples: Sequence[Example]) -> Batch:
        inputs, sources = self.inputs(examples)
        if examples[0].target is not None:
            labels = torch.tensor([example.target for example in examples])
        else:
            labels, _ = self.rectangle([example.parts["tags"] for example in examples], IGNORED)
        return Batch(inputs, labels, int((labels != IGNORED).sum()), sources)

    def full(self, rows: int, length: int) -> Batch:
        shape = (rows, length) if self.tagged else (rows,)
        labels = torch.zeros(shape, dtype=torch.long)
        return Batch(self.full_inputs(rows, length), labels, labels.numel(), [])
