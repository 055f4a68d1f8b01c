"""Places: where a chat template writes the parts of a conversation, and which of them it leaves out.

All parts are marked at once (marks.py). A template may look into a text (does it begin with <think>?) and do
something else with the marked one. Then each part is marked alone, around it, in its middle or at its end,
and at last replaced: what changes, is written.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from graft.data.marks import WORD, Part, Seen, Writing, around, end, every_word, marks_of, middle
from graft.data.rows import BadRow

LINKS = ("tool_call_id", "weight")  # keys of a message that say nothing to be read
OTHER = "\ue0f4other\ue0f5"  # stands for a text that is replaced


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


def locate(writing: Writing, turn: int | None = None) -> Places:
    """Return where the text has every part of the conversation, or of one turn."""
    places = Places()
    parts = [part for part in _parts(writing) if turn in (None, part.turn)]
    marks = marks_of(writing, parts, around)
    for part in parts:
        seen = marks[part] if marks is not None else _alone(writing, part)
        if seen is not None:
            _place(places, part, seen)
        else:
            _replace(places, part, writing)
    for part in parts:
        if part.key == "content" and _doubtful(places, part, writing):
            words = marks_of(writing, [part], every_word)
            _check_words(places, part, words[part] if words is not None else None)
    return places


def _parts(writing: Writing) -> Iterator[Part]:
    """Yield everything that the conversation says."""
    for number in range(len(writing.tools or ())):
        yield Part(-1, "tools", number)
    for turn, message in enumerate(writing.messages):
        for key, value in message.items():
            if key == "tool_calls":
                yield from (Part(turn, key, number) for number in range(len(value)))
            elif key != "role" and key not in LINKS and _says(value):
                yield Part(turn, key)


def _says(value: Any) -> bool:
    return bool(value.strip()) if isinstance(value, str) else bool(value)


def _place(places: Places, part: Part, seen: Seen) -> None:
    """Note what the marks of a part tell."""
    if not seen.before and not seen.behind:
        places.lost.add(part)
        return
    both = seen.before + seen.behind
    places.found[part] = (min(seen.before or both), max(seen.behind or both))
    if seen.missing and part.key != "tools":
        places.partly.add(part)


def _alone(writing: Writing, part: Part) -> Seen | None:
    """Return the marks of one part that is marked alone; None if marks tell nothing about it."""
    for put in (around, middle, end):
        marks = marks_of(writing, [part], put)
        seen = marks[part] if marks is not None else None
        if seen is None:
            continue
        if put is around:
            return seen
        if not seen.before:  # where the marks stand it may be cut: nothing is known
            continue
        if part.key != "content":
            return seen
        core = writing.content(part).strip()
        begin = seen.before[0] - (len(core) if put is end else len(core) // 2)
        if begin >= 0 and writing.text[begin : begin + len(core)] == core:
            return Seen([begin], [begin + len(core)])
    return None


def _replace(places: Places, part: Part, writing: Writing) -> None:
    """Note whether the text changes when a part is replaced or left out, and where, if that is certain."""
    text = writing.text
    try:
        other = writing.saying(part, OTHER) if part.key == "content" else writing.without(part)
    except BadRow:  # it is read, and the template would not do without
        places.unplaced.add(part)
        return
    head, _, tail = other.partition(OTHER)
    once = OTHER in other and OTHER not in tail and len(head) + len(tail) <= len(text)
    if once and text.startswith(head) and text.endswith(tail):
        places.found[part] = (len(head), len(text) - len(tail))
    elif other == text:
        places.lost.add(part)
    else:
        places.unplaced.add(part)
        if part.key == "content" and _is_cut(writing, part):
            places.partly.add(part)


def _is_cut(writing: Writing, part: Part) -> bool:
    """Return whether the first or the last word of a content may change without a change of the text."""
    content = writing.content(part)
    words = list(WORD.finditer(content))
    for word in {*words[:1], *words[-1:]}:
        letters = "".join("x" if letter != "x" else "y" for letter in word.group())
        changed = content[: word.start()] + letters + content[word.end() :]
        try:
            if writing.saying(part, changed) == writing.text:
                return True
        except BadRow:  # it is read
            continue
    return False


def _doubtful(places: Places, part: Part, writing: Writing) -> bool:
    """Return whether the content of a turn may not be written as a whole, as far as marks around it tell."""
    if part in places.found:
        written = writing.text[slice(*places.found[part])]
        return part in places.partly or written != writing.content(part).strip()
    return part in places.lost


def _check_words(places: Places, part: Part, words: Seen | None) -> None:
    """Note whether a content is written as a whole.  words: the marks of all its words, if they tell."""
    if words is None or not (words.before or words.behind):
        if part in places.found:
            places.partly.add(part)
        return
    coarse = places.found.get(part)
    places.lost.discard(part)
    places.partly.discard(part)
    _place(places, part, words)
    if coarse is not None:
        fine = places.found[part]
        places.found[part] = (min(coarse[0], fine[0]), max(coarse[1], fine[1]))
