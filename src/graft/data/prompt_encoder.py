"""Prompts become the ids with which the model is asked. The row itself stays beside them, as JSON.

    ids = prompt; nothing is learnt; part "row": {"prompt": ..., "tools": ..., "columns": {...}} in UTF-8

Whoever rewards an answer reads the row again: the prompt as it was written, and the other columns.
"""

import json
from typing import Any

from graft.data.encode import IGNORED, ROW, Encoded, Encoder, Example, Outcomes
from graft.data.rows import BadRow, Row, as_chat
from graft.data.templates import Prompt, prompt_ids, source


class PromptEncoder(Encoder):
    """Encodes what rows ask.

    max_length: tokens of a prompt; a longer one is a reject, because its end is the question.
    template: the name that a recipe gives.
    """

    def __init__(self, tokenizer: Any, max_length: int, template: str | None, *, reads: bool = False) -> None:
        super().__init__(tokenizer, max_length, reads=reads)
        self.template = source(tokenizer, template)
        self.named = template is not None

    def encode(self, rows: list[Row], encoded: Encoded) -> Outcomes:
        for row in rows:
            asked = as_chat(row) if self.named else row
            try:
                ids = prompt_ids(asked.value[0], self.tokenizer, template=self.template, tools=asked.tools)
            except BadRow as bad:
                yield row, bad
                continue
            if not ids:
                yield row, BadRow("no prompt", "no token is asked", "fill it or remove the row")
            elif len(ids) > self.max_length:
                given = f"{len(ids)} tokens; data.max_length leaves {self.max_length} beside the answer"
                yield row, BadRow("prompt too long", given, "raise data.max_length, or shorten the prompt")
            else:
                yield row, [Example(ids, [IGNORED] * len(ids), row.source, parts={ROW: _written(asked)})]


def _written(row: Row) -> list[int]:
    """Return a row of kind "prompt" as the bytes of JSON."""
    prompt, columns = row.value
    facts = {"prompt": prompt, "tools": row.tools, "columns": columns}
    # A file of JSON may hold half a character; only the prompt, which the model reads, must not.
    return list(json.dumps(facts, ensure_ascii=False, default=str).encode(errors="surrogatepass"))


def asked_of(example: Example) -> tuple[Prompt, dict[str, Any]]:
    """Return what an example asks, as for `Base.generate`, and the other columns of its row."""
    facts = json.loads(bytes(example.parts[ROW]))
    prompt: Prompt = facts["prompt"]
    if facts["tools"] and not isinstance(prompt, str):
        prompt = {"messages": prompt, "tools": facts["tools"]}
    return prompt, facts["columns"]
