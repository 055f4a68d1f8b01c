"""The row of each layout in its normal form (`rows.Row`), one function per layout.

Each function takes the row's place, its fields by name, and the names of the columns that carry the layout,
which the row has. It raises BadRow if a column holds anything else than it should.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from graft.data.messages import in_order, messages_of, tools_of
from graft.data.rows import BadRow, Row, turns
from graft.data.tags import first_orphan

Fields = Mapping[str, Any]
Names = tuple[str, ...]


def text_row(source: str, fields: Fields, names: Names) -> Row:
    """Build the row of a text.  names: (text,)."""
    return Row(source, "text", _string(fields, names[0], "empty text"))


def pair_row(source: str, fields: Fields, names: Names) -> Row:
    """Build the row of a prompt with its completion, both texts or both lists of messages."""
    prompt, completion = (fields[name] for name in names)
    if isinstance(prompt, list) and isinstance(completion, list):
        messages = messages_of(prompt, "role", "content") + messages_of(completion, "role", "content")
        return Row(source, "chat", in_order(messages), tools_of(fields), first=len(prompt))
    texts = _string(fields, names[0], "no prompt"), _string(fields, names[1], "no answer")
    return Row(source, "pair", texts)


def alpaca_row(source: str, fields: Fields, names: Names) -> Row:
    """Build the row of an instruction with its output.  names: ("instruction", output)."""
    question = _string(fields, "instruction", "no prompt")
    if fields.get("input"):
        question += "\n" + _string(fields, "input", "no prompt")
    messages = _system(fields)
    for turn in fields.get("history") or []:
        if not (isinstance(turn, list | tuple) and len(turn) == 2):
            raise BadRow("bad messages", "history is no list of pairs", "write [[instruction, answer], ...]")
        messages += messages_of(turns(*turn), "role", "content")
    return Row(source, "chat", messages + turns(question, _string(fields, names[1], "no answer")))


def chat_row(source: str, fields: Fields, names: Names) -> Row:
    """Build the row of messages of role and content.  names: (messages,)."""
    messages = messages_of(fields[names[0]], "role", "content")
    return Row(source, "chat", in_order(messages), tools_of(fields))


def sharegpt_row(source: str, fields: Fields, names: Names) -> Row:
    """Build the row of turns of from and value.  names: (conversations,)."""
    messages = messages_of(fields[names[0]], "from", "value")
    return Row(source, "chat", in_order(_system(fields) + messages), tools_of(fields))


def label_row(source: str, fields: Fields, names: Names) -> Row:
    """Build the row of a text with its label."""
    text, label = _string(fields, names[0], "empty text"), fields[names[1]]
    if label is None or label == "":
        raise BadRow("no label", f"{names[1]!r} is empty", "fill it or remove the row")
    if isinstance(label, bool) or not isinstance(label, str | int):
        detail = f"{names[1]!r} is {type(label).__name__}"
        raise BadRow("bad label", detail, "write one label, a string or an integer")
    return Row(source, "label", (text, label))


def tagged_row(source: str, fields: Fields, names: Names) -> Row:
    """Build the row of words with a tag for each."""
    words, tags = _filled_list(fields, names[0], "no words"), _filled_list(fields, names[1], "no tags")
    if len(words) != len(tags):
        detail = f"{len(words)} {names[0]}, {len(tags)} {names[1]}"
        raise BadRow("unequal lengths", detail, "give every word one tag")
    for k, (word, tag) in enumerate(zip(words, tags, strict=True)):
        if type(tag) is int:
            remedy = "name the numbers in their order: data.tag_names=[O, B-PER, I-PER]"
            raise BadRow("tag without a name", f"{names[1]}[{k}] is {tag}", remedy)
        for name, value, reason in ((names[0], word, "bad word"), (names[1], tag, "bad tag")):
            if not isinstance(value, str) or not value.strip():
                raise BadRow(reason, f"{name}[{k}] is {value!r:.40}", "write words and tags as strings")
    orphan = first_orphan(tags)
    if orphan is not None:
        detail = f"{names[1]}[{orphan}] is {tags[orphan]} and continues no entity"
        raise BadRow("not IOB2", detail, f"let entities begin with B{tags[orphan][1:]}")
    return Row(source, "tags", (words, tags))


def named_tags(tags: Any, names: Sequence[str]) -> Any:
    """Replace numbers by names; a number without a name stays, and `tagged_row` rejects it."""
    if not isinstance(tags, list):
        return tags
    known = dict(enumerate(names))
    return [known.get(tag, tag) if type(tag) is int else tag for tag in tags]


def check_text(text: str) -> None:
    """Raise BadRow for a text with a NUL or with half a character (a lone surrogate)."""
    if "\0" in text:
        raise BadRow("NUL byte", f"a NUL at character {text.index(chr(0))}", "remove it")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            detail = f"half a character at {error.start}"
            raise BadRow("not UTF-8", detail, "save the file as UTF-8") from None


def _string(fields: Fields, name: str, reason: str) -> str:
    """Return the text of a column.  reason: of the reject if it is empty."""
    value = fields.get(name)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise BadRow(reason, f"{name!r} is empty", "fill it or remove the row")
    if not isinstance(value, str):
        detail = f"{name!r} is {type(value).__name__} {str(value)[:40]!r}"
        raise BadRow("not text", detail, "write it as one string")
    return value


def _filled_list(fields: Fields, name: str, reason: str) -> list[Any]:
    """Return the list of a column.  reason: of the reject if it is empty or no list."""
    values = fields[name]
    if not isinstance(values, list) or not values:
        kind = type(values).__name__ if values else "empty"
        raise BadRow(reason, f"{name!r} is {kind}", "write a list with one string per word")
    return values


def _system(fields: Fields) -> list[dict[str, Any]]:
    """Return the system message of a row that has it in a column of its own, or none."""
    if not fields.get("system"):
        return []
    return [{"role": "system", "content": _string(fields, "system", "empty text")}]
