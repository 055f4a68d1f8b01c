"""Marks show what a chat template writes of a conversation, and where.

Every text of the conversation gets two private-use characters of its own, before its first and after its last
letter, and the whole is rendered once more. If the result without the marks is the text as it was, they stand
where the template put the words:

    text    <|im_start|>user\\nd<|im_end|>        a mark that is missing: the template leaves the words out
    marked  <|im_start|>user\\n«d»<|im_end|>      nothing is ever found by searching for words

A template may look into a text (does it begin with <think>?) and do something else with the marked one. Then
each part is marked alone, around it, in its middle or at its end, and at last replaced: what changes, is
written.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from graft.data.rows import BadRow
from graft.data.tool_calls import function_of

Messages = list[dict[str, Any]]
Tools = list[Any] | None
Render = Callable[[Messages, Tools], str]

FIRST = 0x100000  # private use, plane 16
LINKS = ("tool_call_id", "weight")  # keys of a message that say nothing to be read
OTHER = "\ue0f4other\ue0f5"  # stands for a text that is replaced
SCHEMA = ("name", "description")  # keys of a tool that every template writes if it writes the tool
WORD = re.compile(r"(?<![<|/\w])\w+")  # a word that is no part of a tag such as </think> or <|end|>


class Part(NamedTuple):
    """One thing that a conversation says.

    turn: index of its message, -1 for a tool.  key: of the message.  number: which tool, or which call.
    """

    turn: int
    key: str
    number: int = 0


@dataclass
class Places:
    """Where a rendered text has the parts of its conversation.

    found: (first character, end) of each.  unplaced: written, but nobody knows where.  lost: not written.
    partly: written, but not all of it.
    """

    found: dict[Part, tuple[int, int]] = field(default_factory=dict)
    unplaced: set[Part] = field(default_factory=set)
    lost: set[Part] = field(default_factory=set)
    partly: set[Part] = field(default_factory=set)

    def of_turn(self, turn: int) -> tuple[int, int] | None:
        """Return where a turn's words begin and end; None if none has a place."""
        spans = [span for part, span in self.found.items() if part.turn == turn]
        return (min(a for a, _ in spans), max(b for _, b in spans)) if spans else None

    def ends_with_content(self, turn: int) -> bool:
        """Return whether the last that is written of a turn is its content."""
        content, whole = self.found.get(Part(turn, "content")), self.of_turn(turn)
        unplaced = any(part.turn == turn for part in self.unplaced)
        return content is not None and whole is not None and content[1] == whole[1] and not unplaced


def locate(render: Render, messages: Messages, tools: Tools, text: str) -> Places:
    """Return where `text`, which is render(messages, tools), has every part of the conversation."""
    places = Places()
    parts = list(_parts(messages, tools))
    marked = _marked(render, messages, tools, text, set(parts), _around)
    for part in parts:
        seen = marked[part] if marked is not None else _alone(render, messages, tools, text, part)
        _place(places, part, seen, _changed(render, messages, tools, text, part) if seen is None else None)
    for part in parts:
        if part.key != "content":
            continue
        if part in places.unplaced:
            if _is_cut(render, messages, tools, text, part):
                places.partly.add(part)
        elif _doubtful(places, part, messages, text):
            words = _marked(render, messages, tools, text, {part}, _words)
            _doubt(places, part, words[part] if words is not None else None)
    return places


@dataclass
class _Seen:
    """The marks of a part: positions in the text of those before and of those behind its words.

    leaves: how many texts it has.
    """

    leaves: int = 0
    before: list[int] = field(default_factory=list)
    behind: list[int] = field(default_factory=list)
    missing: int = 0


def _parts(messages: Messages, tools: Tools) -> Iterator[Part]:
    """Yield everything that the conversation says."""
    for number in range(len(tools or ())):
        yield Part(-1, "tools", number)
    for turn, message in enumerate(messages):
        for key, value in message.items():
            if key == "tool_calls":
                yield from (Part(turn, key, number) for number in range(len(value)))
            elif key != "role" and key not in LINKS and _says(value):
                yield Part(turn, key)


def _says(value: Any) -> bool:
    return bool(value.strip()) if isinstance(value, str) else bool(value)


# Marks, put in and found again


def _around(text: str, mark: Callable[[], tuple[str, str]]) -> str:
    core = text.strip()
    if not core:
        return text
    at = text.index(core)
    before, behind = mark()
    return text[:at] + before + core + behind + text[at + len(core) :]


def _middle(text: str, mark: Callable[[], tuple[str, str]]) -> str:
    return _inside(text, mark, len(text.strip()) // 2)


def _end(text: str, mark: Callable[[], tuple[str, str]]) -> str:
    return _inside(text, mark, len(text.strip()))


def _inside(text: str, mark: Callable[[], tuple[str, str]], letters: int) -> str:
    """Return a text with both marks behind so many letters of its core."""
    at = text.index(text.strip()) + letters
    return text[:at] + "".join(mark()) + text[at:]


def _words(text: str, mark: Callable[[], tuple[str, str]]) -> str:
    return WORD.sub(lambda word: word.group().join(mark()), text)


def _marked(
    render: Render, messages: Messages, tools: Tools, text: str, parts: set[Part], how: Callable[..., str]
) -> dict[Part, _Seen | None] | None:
    """Mark these parts and return the marks found of each; None of a part without texts.

    Returns None if the marks change what the template writes.
    """
    first = FIRST if text.isascii() else max(FIRST, ord(max(text)) + 1)
    owners: list[Part] = []

    def marking(part: Part) -> Callable[[str], str]:
        def mark() -> tuple[str, str]:
            owners.append(part)
            at = first + 2 * len(owners)
            return chr(at - 2), chr(at - 1)

        return lambda value: how(value, mark)

    try:
        told, shown = _replaced(messages, tools, parts, marking)
        marked = render(told, shown) if owners else text
    except (BadRow, ValueError):  # ValueError: more texts than there are marks
        return None
    seen: dict[Part, _Seen | None] = dict.fromkeys(parts)
    for owner in owners:
        mine = seen[owner] = seen[owner] or _Seen()
        mine.leaves += 1
    positions: dict[int, int] = {}
    if not owners:
        return seen
    pieces = re.split(f"([{chr(first)}-{chr(first + 2 * len(owners) - 1)}])", marked)
    at = 0
    for piece, mark in zip(pieces[::2], [*pieces[1::2], ""], strict=True):
        at += len(piece)
        if mark:
            number = ord(mark) - first
            owned = seen[owners[number // 2]]
            assert owned is not None
            (owned.behind if number % 2 else owned.before).append(at)
            positions[number] = at
    if "".join(pieces[::2]) != text:
        return None
    for number in range(2 * len(owners)):
        owned = seen[owners[number // 2]]
        if owned is not None and number not in positions:
            owned.missing += 1
    return seen


def _replaced(
    messages: Messages, tools: Tools, parts: set[Part], change: Callable[[Part], Callable[[str], str]]
) -> tuple[Messages, Tools]:
    """Return messages and tools with the texts of these parts changed."""
    told = []
    for turn, message in enumerate(messages):
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
        for k, tool in enumerate(tools or ())
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


# What the marks tell


def _place(places: Places, part: Part, seen: _Seen | None, changed: tuple[int, int] | bool | None) -> None:
    """Note what is known of a part: its marks, or what changes when it is replaced."""
    places.partly.discard(part)
    if seen is None:
        if isinstance(changed, tuple):
            places.found[part] = changed
        else:
            (places.unplaced if changed else places.lost).add(part)
    elif not seen.before and not seen.behind:
        places.lost.add(part)
    else:
        both = seen.before + seen.behind
        places.found[part] = (min(seen.before or both), max(seen.behind or both))
        if seen.missing and part.key != "tools":
            places.partly.add(part)


def _doubt(places: Places, part: Part, words: _Seen | None) -> None:
    """Note whether a content is written as a whole.  words: the marks of all its words, if they tell."""
    if words is not None and (words.before or words.behind):
        coarse = places.found.get(part)
        places.lost.discard(part)
        _place(places, part, words, None)
        if coarse is not None:
            fine = places.found[part]
            places.found[part] = (min(coarse[0], fine[0]), max(coarse[1], fine[1]))
    elif part in places.found:
        places.partly.add(part)


def _alone(render: Render, messages: Messages, tools: Tools, text: str, part: Part) -> _Seen | None:
    """Return the marks of one part that is marked alone; None if marks tell nothing about it."""
    for how in (_around, _middle, _end):
        marked = _marked(render, messages, tools, text, {part}, how)
        seen = marked[part] if marked is not None else None
        if seen is None:
            continue
        if how is _around:
            return seen
        if not seen.before:  # where the marks stand it may be cut: nothing is known
            continue
        if part.key != "content":
            return seen
        core = messages[part.turn]["content"].strip()
        begin = seen.before[0] - (len(core) if how is _end else len(core) // 2)
        if begin >= 0 and text[begin : begin + len(core)] == core:
            return _Seen(1, [begin], [begin + len(core)])
    return None


def _changed(
    render: Render, messages: Messages, tools: Tools, text: str, part: Part
) -> tuple[int, int] | bool:
    """Return whether the text changes when a part is replaced or left out, and where, if that is certain."""
    if part.key == "content":
        told: Messages = [dict(message) for message in messages]
        told[part.turn]["content"] = OTHER
    else:
        told, tools = _without(messages, tools, part)
    try:
        other = render(told, tools)
    except BadRow:  # it is read, and the template would not do without
        return True
    head, _, tail = other.partition(OTHER)
    once = OTHER in other and OTHER not in tail and len(head) + len(tail) <= len(text)
    if once and text.startswith(head) and text.endswith(tail):
        return len(head), len(text) - len(tail)
    return other != text


def _is_cut(render: Render, messages: Messages, tools: Tools, text: str, part: Part) -> bool:
    """Return whether the first or the last word of a content may be changed without a change of the text."""
    content: str = messages[part.turn]["content"]
    words = list(WORD.finditer(content))
    for word in {*words[:1], *words[-1:]}:
        letters = "".join("x" if letter != "x" else "y" for letter in word.group())
        told: Messages = [dict(message) for message in messages]
        told[part.turn]["content"] = content[: word.start()] + letters + content[word.end() :]
        try:
            if render(told, tools) == text:
                return True
        except BadRow:
            continue
    return False


def _without(messages: Messages, tools: Tools, part: Part) -> tuple[Messages, Tools]:
    """Return messages and tools without one part."""
    if part.key == "tools":
        return messages, [tool for k, tool in enumerate(tools or ()) if k != part.number] or None
    told = [dict(message) for message in messages]
    if part.key == "tool_calls":
        calls = told[part.turn]["tool_calls"]
        told[part.turn]["tool_calls"] = calls[: part.number] + calls[part.number + 1 :]
    if not told[part.turn][part.key] or part.key != "tool_calls":
        del told[part.turn][part.key]
    return told, tools


def _doubtful(places: Places, part: Part, messages: Messages, text: str) -> bool:
    """Return whether the content of a turn may not be written as a whole."""
    if part in places.lost or part in places.partly:
        return True
    span = places.found.get(part)
    return span is not None and text[slice(*span)] != messages[part.turn]["content"].strip()
