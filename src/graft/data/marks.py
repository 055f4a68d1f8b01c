"""Marks: private-use characters around the texts of a conversation, which a template writes with them.

    text    <|im_start|>user\\nd<|im_end|>
    marked  <|im_start|>user\\n«d»<|im_end|>       two characters of its own for every text

If the marked text without its marks is the text as it was, they stand where the template put the words, and a
mark that is missing belongs to words that it leaves out. Nothing is found by searching for words.
"""

import re
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from graft.data.rows import BadRow
from graft.data.tool_calls import function_of

Messages = list[dict[str, Any]]
Tools = list[Any] | None
Mark = Callable[[], tuple[str, str]]  # returns the next two marks
Put = Callable[[str, Mark], str]  # puts marks into a text that is not blank

FIRST = 0x100000  # private use, plane 16
SCHEMA = ("name", "description")  # keys of a tool that every template writes if it writes the tool
WORD = re.compile(r"(?<![<|/\w])\w+")  # a word that is no part of a tag such as </think> or <|end|>


class Part(NamedTuple):
    """One thing that a conversation says.

    turn: index of its message, -1 for a tool.  key: of the message.  number: which tool, or which call.
    """

    turn: int
    key: str
    number: int = 0


@dataclass(frozen=True)
class Writing:
    """A conversation and the text that a template writes of it.

    render: writes any messages and tools in the same way; raises BadRow where the template fails.
    """

    render: Callable[[Messages, Tools], str]
    messages: Messages
    tools: Tools
    text: str

    def content(self, part: Part) -> str:
        """Return what a turn says."""
        return str(self.messages[part.turn]["content"])

    def saying(self, part: Part, content: str) -> str:
        """Return the text with another content of one turn."""
        told = [dict(message) for message in self.messages]
        told[part.turn]["content"] = content
        return self.render(told, self.tools)

    def without(self, part: Part) -> str:
        """Return the text without one part."""
        if part.key == "tools":
            others = [tool for k, tool in enumerate(self.tools or ()) if k != part.number]
            return self.render(self.messages, others or None)
        message = dict(self.messages[part.turn])
        value = message.pop(part.key)
        if part.key == "tool_calls" and len(value) > 1:
            message[part.key] = value[: part.number] + value[part.number + 1 :]
        told = [*self.messages[: part.turn], message, *self.messages[part.turn + 1 :]]
        return self.render(told, self.tools)


@dataclass
class Seen:
    """The marks of a part: positions in the text of those before and of those behind its words.

    missing: how many of them the text does not have.
    """

    before: list[int] = field(default_factory=list)
    behind: list[int] = field(default_factory=list)
    missing: int = 0


def around(text: str, mark: Mark) -> str:
    """Put one mark before the first letter and one behind the last."""
    core = text.strip()
    at = text.index(core)
    before, behind = mark()
    return text[:at] + before + core + behind + text[at + len(core) :]


def middle(text: str, mark: Mark) -> str:
    """Put both marks behind the first half of the letters."""
    return _behind(text, len(text.strip()) // 2, mark)


def end(text: str, mark: Mark) -> str:
    """Put both marks behind the last letter."""
    return _behind(text, len(text.strip()), mark)


def _behind(text: str, letters: int, mark: Mark) -> str:
    at = text.index(text.strip()) + letters
    return text[:at] + "".join(mark()) + text[at:]


def every_word(text: str, mark: Mark) -> str:
    """Put marks around every word."""
    return WORD.sub(lambda word: word.group().join(mark()), text)


def marks_of(writing: Writing, parts: Iterable[Part], put: Put) -> dict[Part, Seen | None] | None:
    """Mark these parts, and return the marks found of each; None of a part that has no text.

    Returns None if the marks change what the template writes.
    """
    seen: dict[Part, Seen | None] = dict.fromkeys(parts)
    first = FIRST if writing.text.isascii() else max(FIRST, ord(max(writing.text)) + 1)
    owners: list[Seen] = []  # of each pair of marks

    def marking(part: Part) -> Callable[[str], str]:
        def mark() -> tuple[str, str]:
            owner = seen[part] = seen[part] or Seen()
            owners.append(owner)
            at = first + 2 * len(owners)
            return chr(at - 2), chr(at - 1)

        return lambda text: put(text, mark)

    try:
        told, shown = _replaced(writing, seen, marking)
        marked = writing.render(told, shown) if owners else writing.text
    except (BadRow, ValueError):  # ValueError: more texts than there are marks
        return None
    if not owners:
        return seen
    pieces = re.split(f"([{chr(first)}-{chr(first + 2 * len(owners) - 1)}])", marked)
    if "".join(pieces[::2]) != writing.text:
        return None
    at, found = 0, set()
    for text, mark in zip(pieces[::2], pieces[1::2], strict=False):
        at += len(text)
        number = ord(mark) - first
        owner = owners[number // 2]
        (owner.behind if number % 2 else owner.before).append(at)
        found.add(number)
    for number in range(2 * len(owners)):
        owners[number // 2].missing += number not in found
    return seen


def _replaced(
    writing: Writing, parts: Container[Part], change: Callable[[Part], Callable[[str], str]]
) -> tuple[Messages, Tools]:
    """Return messages and tools with the texts of these parts changed."""
    told = []
    for turn, message in enumerate(writing.messages):
        new = dict(message)
        for key, value in message.items():
            if key == "tool_calls":
                new[key] = [
                    _call(call, change(part)) if (part := Part(turn, key, k)) in parts else call
                    for k, call in enumerate(value)
                ]
            elif (part := Part(turn, key)) in parts:
                new[key] = _texts(value, change(part))
        told.append(new)
    shown = [
        _schema(tool, change(part)) if (part := Part(-1, "tools", k)) in parts else tool
        for k, tool in enumerate(writing.tools or ())
    ]
    return told, shown or None


def _texts(value: Any, change: Callable[[str], str]) -> Any:
    """Return a value with every text in it changed that is not blank."""
    if isinstance(value, str):
        return change(value) if value.strip() else value
    if isinstance(value, dict):
        return {k: _texts(v, change) for k, v in value.items()}
    return [_texts(v, change) for v in value] if isinstance(value, list) else value


def _call(call: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """Return a call with its name and arguments changed."""
    inner = function_of(call)
    inner = inner | {key: _texts(inner[key], change) for key in ("name", "arguments") if key in inner}
    return inner if function_of(call) is call else call | {"function": inner}


def _schema(tool: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """Return a tool with its name and description changed."""
    inner = function_of(tool)
    inner = inner | {key: _texts(inner[key], change) for key in SCHEMA if key in inner}
    return inner if function_of(tool) is tool else tool | {"function": inner}
