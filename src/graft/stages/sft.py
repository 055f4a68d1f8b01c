"""Supervised fine-tuning: the answers of conversations, and of prompts with completions, are learnt.

decoder            prompt and answer in one row; the answer and the token that ends it are learnt
encoder-decoder    everything before the last answer is read, the last answer is written
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

from graft.base.base import Base
from graft.core.positions import first_position
from graft.data.batches import Batches, TokenBatches, WrittenBatches
from graft.data.conversations import Conversations, unknown_characters
from graft.data.encode import IGNORED, Encoded, Encoder, Example, Outcomes
from graft.data.layouts import Accepts, recognise
from graft.data.mask import Rendered, tokenise
from graft.data.read import records
from graft.data.rows import BadRow, Reject, Row, alike
from graft.data.templates import Jinja, Messages, Prompt, source
from graft.errors import DataError
from graft.objectives.lm import language_modelling, token_scores
from graft.stages.stage import Stage

LOOKED_AT = 1000  # rows by whose first one a run's prompts are written


@dataclass(frozen=True)
class Sft(Stage):
    layouts: ClassVar = ("messages", "sharegpt", "alpaca", "prompt_completion", "text")
    metrics: ClassVar = ("perplexity",)
    families: ClassVar = ("causal", "seq2seq")
    asks: ClassVar = True
    packs: ClassVar = True
    takes_functions: ClassVar = True
    loss = staticmethod(language_modelling)

    @property
    def writes(self) -> bool:
        return True

    def template(self, settings: Any, tokenizer: Any) -> Jinja | None:
        return source(tokenizer, settings.template)

    def asks_by_template(self, settings: Any) -> bool:
        return by_template(settings, self.accepts())

    def encoder(self, tokenizer: Any, family: str, settings: Any, labels: Sequence[str] = ()) -> Encoder:
        if family not in self.families:
            raise DataError(
                f"Stage sft on a {family} model", "a model that writes text", "use stage=classify"
            )
        kind = Written if family == "seq2seq" else Conversations
        return kind(tokenizer, settings.max_length, settings.template, reads=settings.control_tokens)

    def batches(self, base: Base, max_length: int, *, pack: bool = False) -> Batches:
        config = base.model.config
        if base.family == "seq2seq":
            start = getattr(config, "decoder_start_token_id", None)
            return WrittenBatches(base.tokenizer, max_length, decoder_start=start)
        first = first_position(config)
        return TokenBatches(
            base.tokenizer, max_length, causal=base.family == "causal", pack=pack, first_position=first
        )

    def scores(self, loss: float, sums: dict[str, float]) -> dict[str, float]:
        return token_scores(loss, sums)

    def pieces(self, example: Example, tokenizer: Any, labels: Sequence[str]) -> list[list[Any]] | None:
        if "written" not in example.parts:
            return None
        texts = ((example.ids, False), (example.parts["written"], True))
        return [[tokenizer.decode(ids, skip_special_tokens=False), learnt] for ids, learnt in texts]

    def questions(self, rows: Sequence[Row]) -> list[Prompt]:
        asked = [prompt for row in rows if (prompt := _asked(row))]
        return list({repr(prompt): prompt for prompt in asked}.values())


def by_template(settings: Any, accepts: Accepts) -> bool:
    """Return whether the chat template writes rows, and so prompts: it is named, or rows are no texts."""
    if settings.template is not None:
        return True
    rows = (r for r in records(settings.train) if not isinstance(r, Reject))
    known = (recognise(r, accepts, settings.format, settings.columns) for r in rows)
    first = alike(list(islice((r for r in known if isinstance(r, Row)), LOOKED_AT)))
    return any(not row.plain for row in first[:1])


def _asked(row: Row) -> Prompt | None:
    """Return the text that a row asks by; a conversation where its answer also depends on other things."""
    if row.kind == "pair":
        return str(row.value[0])
    if row.kind != "chat" or len(row.value) < 2:
        return None
    turns: Messages = row.value[:-1]
    if row.tools:
        return {"messages": turns, "tools": row.tools}
    alone = len(turns) == 1 and turns[0].keys() == {"role", "content"} and turns[0]["role"] == "user"
    return turns[0]["content"] if alone else turns


SFT = Sft()  # what most runs do


class Written(Conversations):
    """Encodes the question for the encoder, and the last answer for the decoder."""

    def encode(self, rows: list[Row], encoded: Encoded) -> Outcomes:
        for row in rows:
            try:
                asked, answer = self._question(self.seen(row))
            except BadRow as bad:
                yield row, bad
                continue
            ((read, _, _),) = tokenise([asked], self.tokenizer, self.room)
            (written,) = self.ids([answer], self.max_length)
            read = self.before + self.cut(read, self.room, row, encoded) + self.after
            written = self.cut([*written, self.eos], self.max_length, row, encoded)
            if self.unknown in written:
                yield row, unknown_characters([], written.count(self.unknown))
            else:
                encoded.unused.update(asked.unused)
                yield row, [Example(read, [IGNORED] * len(read), row.source, parts={"written": written})]

    def _question(self, row: Row) -> tuple[Rendered, str]:
        """Return what the encoder reads and what the decoder writes."""
        if row.kind == "text":
            raise BadRow("no prompt", "a text alone", "give prompt and completion, or use stage=pretrain")
        if row.kind == "pair":
            return Rendered(row.value[0]), row.value[1]
        return self.template.question(row), row.value[-1]["content"]
