"""Recognise the layout of a row by its columns, and bring the row into the normal form (`rows.Row`).

    text                    text | content
    messages                messages of role, content (also tools, tool_calls, reasoning_content)
    prompt_completion       prompt, completion (texts or lists of messages) | question, answer | ...
    alpaca                  instruction, output | response (also input, system, history)
    sharegpt                conversations of from, value (also system, tools)
    classification          text | sentence, label | label_text | intent
    tags                    tokens | words, tags | ner_tags | labels

Only messages, alpaca and sharegpt pass through a chat template; texts stay as they are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from graft.data import normal_form
from graft.data.rows import BadRow, Record, Reject, Row
from graft.errors import UsageError, nearest, one_of

Columns = frozenset[str]
Names = tuple[str, ...]

TEXTS = ("text", "content", "document")
PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "answer"),
    ("prompt", "output"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("query", "answer"),
    ("input", "output"),
    ("input", "target"),
    ("source", "target"),
)
LABELS = ("label", "label_text", "intent")
LABELLED = ("text", "sentence", "content", "utterance")
WORDS = ("tokens", "words")
TAGS = ("tags", "ner_tags", "labels")
# Our names of columns, which data.columns may map.
COLUMNS = (
    "text", "label", "messages", "tools", "prompt", "completion", "instruction", "input", "output", "system",
    "history", "conversations", "tokens", "tags",
)  # fmt: skip


@dataclass(frozen=True)
class Accepts:
    """The layouts of rows that a stage reads, in the order in which they are tried.

    stage: the name of the stage, for messages.
    """

    stage: str
    layouts: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """How to recognise a layout and how to read it.

    columns: of a row's column names, those that carry this layout; empty if the row has another one.
    build: makes the row of (source, fields, those names); see `normal_form`.
    """

    columns: Callable[[Columns], Names]
    build: Callable[[str, Mapping[str, Any], Names], Row]


def _first_of(known: Sequence[str], columns: Columns) -> Names:
    """Return the first known name that is a column, as a tuple of one or none."""
    return next(((name,) for name in known if name in columns), ())


def _both(first: Names, second: Names) -> Names:
    return first + second if first and second else ()


def _text_columns(columns: Columns) -> Names:
    return _first_of(TEXTS, columns)


def _message_columns(columns: Columns) -> Names:
    return _first_of(("messages",), columns)


def _pair_columns(columns: Columns) -> Names:
    return next((pair for pair in PAIRS if columns.issuperset(pair)), ())


def _alpaca_columns(columns: Columns) -> Names:
    return _both(_first_of(("instruction",), columns), _first_of(("output", "response"), columns))


def _sharegpt_columns(columns: Columns) -> Names:
    return _first_of(("conversations", "conversation"), columns)


def _label_columns(columns: Columns) -> Names:
    return _both(_first_of(LABELLED, columns), _first_of(LABELS, columns))


def _tag_columns(columns: Columns) -> Names:
    return _both(_first_of(WORDS, columns), _first_of(TAGS, columns))


LAYOUTS = {
    "text": Layout(_text_columns, normal_form.text_row),
    "messages": Layout(_message_columns, normal_form.chat_row),
    "prompt_completion": Layout(_pair_columns, normal_form.pair_row),
    "alpaca": Layout(_alpaca_columns, normal_form.alpaca_row),
    "sharegpt": Layout(_sharegpt_columns, normal_form.sharegpt_row),
    "classification": Layout(_label_columns, normal_form.label_row),
    "tags": Layout(_tag_columns, normal_form.tagged_row),
}


def check_settings(accepts: Accepts, format: str, columns: Mapping[str, str]) -> None:
    """Raise UsageError for a format or a column name that means nothing, before any file is opened."""
    one_of("data.format", format, ["auto", *LAYOUTS])
    if format != "auto" and format not in accepts.layouts:
        raise UsageError(
            f"data.format is {format} and the stage is {accepts.stage}",
            f"one of {', '.join(accepts.layouts)}",
            "change one of the two",
        )
    for ours in columns:
        one_of("our name (left) in data.columns", ours, COLUMNS)


def recognise(
    record: Record,
    accepts: Accepts,
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    tag_names: Sequence[str] = (),
) -> Row | Reject:
    """Return the row in normal form, or a Reject that says what is wrong with it.

    format: a name of LAYOUTS, or "auto" for the first of `accepts` that fits.  columns: {our name: the file's
    name}, for files with other names.  tag_names: names of tags that the file writes as numbers, in the
    numbers' order.
    """
    try:
        fields = _renamed(record.fields, columns) if columns else record.fields
        layout, names = _layout(frozenset(fields), accepts, format)
        if layout == "tags" and tag_names:
            fields = fields | {names[1]: normal_form.named_tags(fields[names[1]], tag_names)}
        row = LAYOUTS[layout].build(record.source, fields, names)
        for text in row.texts():
            normal_form.check_text(text)
        return row
    except BadRow as bad:
        return bad.at(record.source)


def _renamed(fields: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields under our names; columns that would stand in their way are dropped."""
    for ours, theirs in columns.items():
        if theirs not in fields:
            detail = f"no column {theirs!r}, which data.columns maps to {ours}"
            close = nearest(theirs, map(str, fields), 1)
            remedy = f"did you mean {close[0]!r}?" if close else "fill the row"
            raise BadRow("missing column", detail, remedy)
    taken = set(columns) | set(columns.values())
    rest = {name: value for name, value in fields.items() if name not in taken}
    return rest | {ours: fields[theirs] for ours, theirs in columns.items()}


@lru_cache(maxsize=1024)
def _layout(columns: Columns, accepts: Accepts, format: str) -> tuple[str, Names]:
    """Return the layout of rows with these columns, and the columns that carry it."""
    candidates = accepts.layouts if format == "auto" else (format,)
    for layout in candidates:
        names = LAYOUTS[layout].columns(columns)
        if not names:
            continue
        label = _first_of(LABELS, columns)
        if (
            layout == "text" and label and "prompt_completion" in accepts.layouts
        ):  # nobody would learn the label
            remedy = (
                f"set stage=classify, or map them with data.columns={{prompt: text, completion: {label[0]}}}"
            )
            raise BadRow("label without classify", f"a text with a {label[0]}", remedy)
        return layout, names
    given = ", ".join(sorted(map(str, columns))) or "none"
    remedy = f"stage {accepts.stage} reads {' or '.join(candidates)}; data.columns maps names"
    raise BadRow("unknown columns", f"columns {given}", remedy)
