"""Conversations, and prompts with completions, as one sequence of ids in which the answers are learnt.

    prompt answer </s>        the answer and the token that ends it are learnt

A prompt has the ids with which the model is asked in use, whatever answer follows it (see `mask`).
"""

from collections.abc import Sequence
from typing import Any

from graft.data.encode import IGNORED, Encoded, Encoder, Example, Outcomes
from graft.data.mask import Rendered, tokenise
from graft.data.rows import BadRow, Row, as_chat
from graft.data.templates import Template, end_token, head, source


class Conversations(Encoder):
    """Encodes a whole row; what the assistant says is learnt.  template: the name that a recipe gives."""

    def __init__(self, tokenizer: Any, max_length: int, template: str | None, *, reads: bool = False) -> None:
        super().__init__(tokenizer, max_length, reads=reads)
        self.eos = end_token(tokenizer)
        self.template = Template(tokenizer, source(tokenizer, template))
        self.named = template is not None

    def encode(self, rows: list[Row], encoded: Encoded) -> Outcomes:
        rendered: list[tuple[Row, Rendered]] = []
        for row, text in zip(rows, self._rendered([self.seen(row) for row in rows]), strict=True):
            if isinstance(text, BadRow):
                yield row, text
            else:
                rendered.append((row, text))
        tokens = tokenise([text for _, text in rendered], self.tokenizer, self.max_length)
        for (row, text), (ids, learnt, where) in zip(rendered, tokens, strict=True):
            learnt[0] = False  # nothing comes before it from which it could be told
            lost = [k for k, use in enumerate(learnt) if use and ids[k] == self.unknown]
            if lost and self.unknown is not None:
                spans = [where[k - len(text.head)] for k in lost] if where else []
                yield row, unknown_characters([text.text[a:b] for a, b in spans], len(lost))
            elif not any(learnt) and len(ids) <= self.max_length:
                yield row, BadRow("nothing to learn", "no token of an answer", "fill the answer")
            elif not any(learnt[: self.max_length]):
                begin = f"token {learnt.index(True)} of" if any(learnt) else "the first"
                given = f"the answer begins after {begin} {len(ids)}"
                yield row, BadRow("cut away", given, "raise data.max_length or shorten the prompt")
            else:
                encoded.altered += text.altered
                encoded.unused.update(text.unused)
                ids = self.cut(ids, self.max_length, row, encoded)
                labels = [i if use else IGNORED for i, use in zip(ids, learnt, strict=False)]
                yield row, [Example(ids, labels, row.source)]

    def seen(self, row: Row) -> Row:
        """Return the row as the model sees it: with a named template a pair is a conversation too."""
        return as_chat(row) if self.named else row

    def holds_tokens(self, row: Row) -> bool:
        """Return whether the row was written by the model's own template before: its controls are tokens."""
        if super().holds_tokens(row):
            return True
        return self.seen(row).kind in ("text", "pair") and self.template.wrote("".join(row.texts()))

    def _rendered(self, rows: Sequence[Row]) -> list[Rendered | BadRow]:
        """Return each row as text: the template is asked once for all conversations."""
        talks = iter(self.template.learn_all([row for row in rows if row.kind == "chat"]))
        return [next(talks) if row.kind == "chat" else self._joined(row) for row in rows]

    def _joined(self, row: Row) -> Rendered:
        """Return a text, or a prompt and its completion as they are."""
        prompt, answer = ("", row.value) if row.kind == "text" else row.value
        text, start = prompt + answer, len(prompt)
        ended = list(self.template.controls.finditer(text.rstrip()))[-1:]
        tail = [] if ended and ended[0].end() == len(text.rstrip()) else [self.eos]
        return Rendered(
            text, [start] if prompt else [], [(start, len(text))], head(text, self.tokenizer), tail
        )


def unknown_characters(characters: list[str], count: int) -> BadRow:
    """Return what is wrong with an answer in which `count` tokens are unknown to the tokenizer."""
    shown = " ".join(map(repr, dict.fromkeys(characters)))[:40]
    given = f"{count} in the answer {shown}".rstrip()
    return BadRow("unknown characters", given, "replace them, or use a tokenizer that knows them")
