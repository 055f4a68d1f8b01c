"""Recognise a row by its columns and bring it into the normal form (`rows.Row`).

    text                    text | content
    messages                messages of role, content (also tools, tool_calls, reasoning_content)
    prompt_completion       prompt, completion (texts or lists of messages) | prompt, response | question, answer | ...
    alpaca                  instruction, output | response (also input, system, history)
    sharegpt                conversations of from, value (also system, tools)
    classification          text | sentence, label | label_text | intent
    tags                    tokens | words, tags | ner_tags | labels

Texts stay texts and messages are messages: only messages (and Alpaca, ShareGPT) pass through a chat template.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from graft.data.rows import BadRow, Record, Reject, Row, turns
from graft.data.tags import astray
from graft.errors import UsageError, nearest

TEXTS = ("text", "content", "document")
PAIRS = (
    ("prompt", "completion"), ("prompt", "response"), ("prompt", "answer"), ("prompt", "output"),
    ("question", "answer"), ("question", "response"), ("query", "response"), ("query", "answer"),
    ("input", "output"), ("input", "target"), ("source", "target"),
)  # fmt: skip
LABELS = ("label", "label_text", "intent")
LABELLED = ("text", "sentence", "content", "utterance")
WORDS = ("tokens", "words")
TAGS = ("tags", "ner_tags", "labels")
FORMATS = ("auto", "text", "messages", "prompt_completion", "alpaca", "sharegpt", "classification", "tags")
COLUMNS = (
    "text", "label", "messages", "tools", "prompt", "completion", "instruction", "input", "output", "system", "history",
    "conversations", "tokens", "tags",
)  # fmt: skip
SPEAKERS = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "function_call": "assistant",
    "system": "system", "observation": "tool", "tool": "tool",
}  # fmt: skip
FOLLOWS = {
    None: ("system", "developer", "user"), "system": ("user",), "developer": ("user",), "user": ("assistant",),
    "assistant": ("user", "tool"), "tool": ("tool", "assistant"),
}  # fmt: skip
ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True)
class Accepts:
    """The layouts of rows that a stage reads, the one that is tried first in front.  stage: its name, for messages."""

    stage: str
    layouts: tuple[str, ...]


def check_settings(accepts: Accepts, format: str, columns: Mapping[str, str]) -> None:
    """Refuse a format or a column name that means nothing, before any file is opened."""
    if format not in FORMATS:
        raise UsageError(
            f"data.format is {format!r}",
            f"one of {', '.join(FORMATS)}",
            f"did you mean {nearest(format, FORMATS, 1)[0]}?",
        )
    if format != "auto" and format not in accepts.layouts:
        raise UsageError(
            f"data.format is {format} and the stage is {accepts.stage}",
            f"one of {', '.join(accepts.layouts)}",
            "change one of the two",
        )
    for ours in columns:
        if ours not in COLUMNS:
            raise UsageError(f"data.columns maps {ours!r}", f"our names on the left: {', '.join(COLUMNS)}",
                             f"did you mean {nearest(ours, COLUMNS, 1)[0]}? The file's name goes right")  # fmt: skip


def recognise(
    record: Record,
    accepts: Accepts,
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    tag_names: Sequence[str] = (),
) -> Row | Reject:
    """The row in normal form, or a Reject that says what is wrong with it.

    columns: {our name: the file's name}, for files with other names.  tag_names: of tags that are written as numbers.
    """
    try:
        fields = _renamed(record.fields, columns) if columns else record.fields
        layout, names = _layout(frozenset(fields), accepts, format)
        if layout == "tags" and tag_names:
            fields = fields | {names[1]: _named(fields[names[1]], tag_names)}
        row = _BUILD[layout](record.source, fields, names)
        for text in row.texts():
            _check_text(text)
        return row
    except BadRow as bad:
        return bad.at(record.source)


def _renamed(fields: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    for ours, theirs in columns.items():
        if theirs not in fields:
            near = nearest(theirs, map(str, fields), 1)
            raise BadRow("missing column", f"no column {theirs!r}, which data.columns maps to {ours}",
                         f"did you mean {near[0]!r}?" if near else "fill the row")  # fmt: skip
    taken = set(columns) | set(columns.values())
    rest = {name: value for name, value in fields.items() if name not in taken}
    return rest | {ours: fields[theirs] for ours, theirs in columns.items()}


@lru_cache(maxsize=1024)
def _layout(keys: frozenset[str], accepts: Accepts, format: str) -> tuple[str, tuple[str, ...]]:
    """Which format rows with these columns have, and the columns that carry it."""
    one = lambda names: next(((name,) for name in names if name in keys), ())
    answer, labelled, label, words, tags = map(one, (("output", "response"), LABELLED, LABELS, WORDS, TAGS))
    found = {
        "messages": one(("messages",)),
        "sharegpt": one(("conversations", "conversation")),
        "alpaca": ("instruction", *answer) if "instruction" in keys and answer else (),
        "prompt_completion": next((pair for pair in PAIRS if keys.issuperset(pair)), ()),
        "text": one(TEXTS),
        "classification": labelled + label if labelled and label else (),
        "tags": words + tags if words and tags else (),
    }
    wanted = accepts.layouts if format == "auto" else (format,)
    for layout in wanted:
        if not found[layout]:
            continue
        if layout == "text" and label and "prompt_completion" in accepts.layouts:  # it would not be learnt
            remedy = f"or map them with data.columns={{prompt: text, completion: {label[0]}}}"
            given = f"a text with a {label[0]}"
            raise BadRow("label without classify", given, f"set stage=classify, {remedy}")
        return layout, found[layout]
    has = ", ".join(sorted(map(str, keys))) or "none"
    remedy = f"stage {accepts.stage} reads {' or '.join(wanted)}; data.columns maps names"
    raise BadRow("unknown columns", f"columns {has}", remedy)


def _string(fields: Mapping[str, Any], name: str, reason: str) -> str:
    value = fields.get(name)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise BadRow(reason, f"{name!r} is empty", "fill it or remove the row")
    if not isinstance(value, str):
        raise BadRow(
            "not text", f"{name!r} is {type(value).__name__} {str(value)[:40]!r}", "write it as one string"
        )
    return value


def _check_text(text: str) -> None:
    if "\0" in text:
        raise BadRow("NUL byte", f"a NUL at character {text.index(chr(0))}", "remove it")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadRow(
                "not UTF-8", f"half a character at {error.start}", "save the file as UTF-8"
            ) from None


def _text(source: str, fields: Mapping[str, Any], names: tuple[str, ...]) -> Row:
    return Row(source, "text", _string(fields, names[0], "empty text"))


def _pair(source: str, fields: Mapping[str, Any], names: tuple[str, ...]) -> Row:
    prompt, completion = fields[names[0]], fields[names[1]]
    if isinstance(prompt, list) and isinstance(completion, list):
        messages = _messages(prompt, "role", "content") + _messages(completion, "role", "content")
        return Row(source, "chat", _ordered(messages), _tools(fields), first=len(prompt))
    return Row(
        source, "pair", (_string(fields, names[0], "no prompt"), _string(fields, names[1], "no answer"))
    )


def _alpaca(source: str, fields: Mapping[str, Any], names: tuple[str, ...]) -> Row:
    ask = _string(fields, "instruction", "no prompt")
    if fields.get("input"):
        ask += "\n" + _string(fields, "input", "no prompt")
    messages = (
        [{"role": "system", "content": _string(fields, "system", "empty text")}]
        if fields.get("system")
        else []
    )
    for turn in fields.get("history") or []:
        if not (isinstance(turn, list | tuple) and len(turn) == 2):
            raise BadRow("bad messages", "history is no list of pairs", "write [[instruction, answer], ...]")
        messages += _messages(turns(*turn), "role", "content")
    return Row(source, "chat", messages + turns(ask, _string(fields, names[1], "no answer")))


def _chat(source: str, fields: Mapping[str, Any], names: tuple[str, ...]) -> Row:
    return Row(source, "chat", _ordered(_messages(fields[names[0]], "role", "content")), _tools(fields))


def _sharegpt(source: str, fields: Mapping[str, Any], names: tuple[str, ...]) -> Row:
    messages = _messages(fields[names[0]], "from", "value")
    if fields.get("system"):
        messages.insert(0, {"role": "system", "content": _string(fields, "system", "empty text")})
    return Row(source, "chat", _ordered(messages), _tools(fields))


def _label(source: str, fields: Mapping[str, Any], names: tuple[str, ...]) -> Row:
    text, label = _string(fields, names[0], "empty text"), fields[names[1]]
    if label is None or label == "":
        raise BadRow("no label", f"{names[1]!r} is empty", "fill it or remove the row")
    if isinstance(label, bool) or not isinstance(label, str | int):
        raise BadRow(
            "bad label", f"{names[1]!r} is {type(label).__name__}", "write one label, a string or an integer"
        )
    return Row(source, "label", (text, label))


def _tagged(source: str, fields: Mapping[str, Any], names: tuple[str, ...]) -> Row:
    words, tags = _listed(fields, names[0], "no words"), _listed(fields, names[1], "no tags")
    if len(words) != len(tags):
        raise BadRow(
            "unequal lengths", f"{len(words)} {names[0]}, {len(tags)} {names[1]}", "give every word one tag"
        )
    for k, (word, tag) in enumerate(zip(words, tags, strict=True)):
        if type(tag) is int:
            raise BadRow("tag without a name", f"{names[1]}[{k}] is {tag}",
                         "name the numbers in their order: data.tag_names=[O, B-PER, I-PER]")  # fmt: skip
        for name, value, reason in ((names[0], word, "bad word"), (names[1], tag, "bad tag")):
            if not isinstance(value, str) or not value.strip():
                raise BadRow(reason, f"{name}[{k}] is {value!r:.40}", "write words and tags as strings")
    lost = astray(tags)
    if lost is not None:
        detail = f"{names[1]}[{lost}] is {tags[lost]} and continues no entity"
        raise BadRow("not IOB2", detail, f"let entities begin with B{tags[lost][1:]}")
    return Row(source, "tags", (words, tags))


def _listed(fields: Mapping[str, Any], name: str, reason: str) -> list[Any]:
    values = fields[name]
    if not isinstance(values, list) or not values:
        found = type(values).__name__ if values else "empty"
        raise BadRow(reason, f"{name!r} is {found}", "write a list with one string per word")
    return values


def _named(tags: Any, names: Sequence[str]) -> Any:
    """Tags by name; a number that has none stays and is refused."""
    known = dict(enumerate(names))
    return (
        [known.get(tag, tag) if type(tag) is int else tag for tag in tags] if isinstance(tags, list) else tags
    )


_BUILD = {
    "text": _text, "prompt_completion": _pair, "alpaca": _alpaca, "messages": _chat, "sharegpt": _sharegpt,
    "classification": _label, "tags": _tagged,
}  # fmt: skip


def _tools(fields: Mapping[str, Any]) -> list[Any] | None:
    """Tool schemas, a list or the JSON text of one; None where there are none."""
    tools = fields.get("tools") or None
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) or None
        except ValueError:
            raise BadRow("bad messages", "tools is not JSON", "write a list of JSON schemas") from None
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise BadRow("bad messages", "tools is not a list of objects", "write a list of JSON schemas")
    return tools


def _messages(spoken: Any, role_key: str, content_key: str) -> list[dict[str, Any]]:
    """Turns with our roles and text content; other keys (tool_calls, reasoning_content, ...) go along."""
    if not isinstance(spoken, list) or not spoken:
        raise BadRow(
            "bad messages", "no list of turns" if spoken else "the list of turns is empty", "write the turns"
        )
    messages = []
    for number, turn in enumerate(spoken, 1):
        if not isinstance(turn, dict):
            raise BadRow(
                "bad messages", f"turn {number} is {type(turn).__name__}", f"write {role_key}, {content_key}"
            )
        told = turn.get(role_key)
        role = SPEAKERS.get(told, told) if isinstance(told, str) else told
        if role not in ROLES:
            raise BadRow("bad role", f"turn {number} has {role_key} {told!r}", f"one of {', '.join(ROLES)}")
        kept = {k: v for k, v in turn.items() if k not in (role_key, content_key) and v is not None}
        messages.append({"role": role, "content": _content(turn.get(content_key), role, number, kept)} | kept)
    return messages


def _content(content: Any, role: str, number: int, turn: Mapping[str, Any]) -> str:
    if isinstance(content, list):  # OpenAI's parts
        if any(not isinstance(part, dict) or not isinstance(part.get("text"), str) for part in content):
            raise BadRow(
                "unsupported content", f"turn {number} has parts that are not text", "remove images and audio"
            )
        content = "".join(part["text"] for part in content)
    if content is not None and not isinstance(content, str):
        raise BadRow("not text", f"turn {number} is {type(content).__name__}", "write it as one string")
    if not (content or "").strip() and not (turn.get("tool_calls") or role == "tool"):
        reason = "no answer" if role == "assistant" else "no prompt"
        raise BadRow(reason, f"turn {number} ({role}) is empty", "fill it or remove the row")
    return content or ""


def _ordered(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """[system] user assistant user assistant ...; tool results stand between two assistant turns."""
    before = None
    for number, message in enumerate(messages, 1):
        if message["role"] not in FOLLOWS[before]:
            raise BadRow("role order", f"turn {number} is {message['role']} after {before or 'the beginning'}",
                         f"{' or '.join(FOLLOWS[before])} must stand there")  # fmt: skip
        before = message["role"]
    if before != "assistant":
        raise BadRow("no answer", f"the conversation ends with {before}", "end it with an assistant turn")
    return messages
