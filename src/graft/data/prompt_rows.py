"""The rows that ask something and leave the answer to the model: a prompt, and all other columns as they are.

A prompt is found as in rows with answers: a text, an instruction with its context and system prompt,
messages, or what a better and a worse answer have in common. An answer at the end of a conversation is no
part of it. What the prompt does not take, such as the right answer, goes to the functions that give rewards.
"""

from typing import Any

from graft.data.columns import ASKED, CHOICES, SYSTEM, Fields, blank
from graft.data.messages import tools_of
from graft.data.normal_form import (
    Messages,
    Names,
    instruction_in,
    system_in,
    turns_in,
    with_context,
    with_system,
)
from graft.data.preferences import asked_and_answered
from graft.data.rows import ASKING, BadRow, Row


def prompt_columns(columns: frozenset[str]) -> Names:
    """Return the column that asks; or two that answer it, which begin with what is asked; or none."""
    found = next(((name,) for name in ASKED if name in columns), ())
    return found or next((pair for pair in CHOICES if columns.issuperset(pair)), ())


def prompt_row(source: str, fields: Fields, names: Names) -> Row:
    """Build the row of a prompt.  names: see `prompt_columns`."""
    # A table for several layouts has nulls in the columns of the others.
    names = prompt_columns(frozenset(name for name in fields if not blank(fields.peek(name)))) or names
    if len(names) == 2:
        prompt, _, _ = asked_and_answered(fields, [(name, fields[name]) for name in names])
    else:
        prompt = _asked(fields, names[0])
    tools = None if isinstance(prompt, str) else tools_of(fields)
    others = {name: fields[name] for name in fields.unread()}
    return Row(source, ASKING, (prompt, others), tools)


def _asked(fields: Fields, name: str) -> str | Messages:
    """Return what a column asks: a text, or messages where it holds some or the row has a system prompt."""
    if name == "instruction":
        return instruction_in(fields)
    given: Any = fields[name]
    if isinstance(given, str) and not (given.lstrip()[:1] == "[" and name in ("messages", "conversations")):
        text = with_context(fields, name)
        if all(blank(fields.peek(key)) for key in SYSTEM):
            return text
        return [*system_in(fields), {"role": "user", "content": text}]
    messages = with_system(fields, turns_in(given))
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not messages:
        raise BadRow("no prompt", f"{name!r} holds no question", "fill it or remove the row")
    return messages
