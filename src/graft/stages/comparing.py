"""What stages have in common whose rows compare answers: they read rankings, and batches of their answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from graft.base.base import Base
from graft.core.positions import first_position
from graft.data.answer_batches import AnswerBatches
from graft.data.encode import Encoder, Example
from graft.data.rankings import Rankings
from graft.data.rows import PREFERRED, Row, with_answers
from graft.data.templates import Jinja, Prompt, source
from graft.stages.sft import SFT, by_template
from graft.stages.stage import Stage


@dataclass(frozen=True)
class Comparing(Stage):
    """Base class of stages on answers that are compared. It declares no layouts, so it is no stage itself."""

    families: ClassVar = ("causal",)
    packs: ClassVar = True  # a prompt is computed once for all of its answers

    def template(self, settings: Any, tokenizer: Any) -> Jinja | None:
        return source(tokenizer, settings.template)

    def asks_by_template(self, settings: Any) -> bool:
        return by_template(settings, self.accepts())

    def encoder(self, tokenizer: Any, family: str, settings: Any, labels: Sequence[str] = ()) -> Encoder:
        return Rankings(tokenizer, settings.max_length, settings.template, reads=settings.control_tokens)

    def batches(self, base: Base, max_length: int, *, pack: bool = False) -> AnswerBatches:
        first = first_position(base.model.config)
        return AnswerBatches(base.tokenizer, max_length, pack=pack, first_position=first)

    def pieces(self, example: Example, tokenizer: Any, labels: Sequence[str]) -> list[list[Any]] | None:
        if example.target is not None:
            return None
        ends, answers = example.parts["ends"], example.parts["answers"]
        spans = zip([0, *ends[:-1]], ends, strict=True)
        texts = [tokenizer.decode(answers[a:b], skip_special_tokens=False) for a, b in spans]
        asked = tokenizer.decode(example.ids, skip_special_tokens=False)
        numbered = [
            piece for k, text in enumerate(texts, 1) for piece in ([f"\n[{k}] ", False], [text, True])
        ]
        return [[asked, False], *numbered]

    def questions(self, rows: Sequence[Row]) -> Sequence[Prompt]:
        return SFT.questions([with_answers(row)[0] for row in rows if row.kind in PREFERRED])
