"""Recognise the layout of a row by its columns, and bring the row into the normal form (`rows.Row`).

    text                    text | content
    messages                messages of role, content (also system, tools, tool_calls, reasoning_content)
    prompt_completion       prompt, completion (texts or lists of messages) | question, answer | ...
                            (also context, system)
    alpaca                  instruction, output | response (also input, context, system, history)
    sharegpt                conversations of from, value (also system, tools)
    classification          text | sentence | two texts, label | label_text | intent
    tags                    tokens | words, tags | ner_tags | labels
    preference              chosen, rejected: texts, messages or conversations (also prompt, scores, margin)
    ranking                 prompt, completions | responses | ... with scores or ranks
    judged                  prompt, completion, label: whether the answer is good (also messages, label)
    prompt                  prompt | question | messages | ... alone; all other columns go to reward functions

Only messages, alpaca, sharegpt and prompts with a system prompt pass through a chat template; texts stay as
they are. Every other column that holds something is named in `Row.unused`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from graft.data import columns as names_of
from graft.data import normal_form, preferences
from graft.data.columns import Fields, as_number, numbered, truth
from graft.data.prompt_rows import prompt_columns, prompt_row
from graft.data.rows import BadRow, Record, Reject, Row
from graft.data.votes import is_vote
from graft.errors import UsageError, nearest, one_of

TREES = ("message_tree_id", "parent_id")  # columns of messages that are written as a tree (see `trees`)
CONVERT = "graft data convert FILE ROWS.jsonl --to sft | preference | judged"
Columns = frozenset[str]
Names = tuple[str, ...]

UNKNOWN, PREFERENCE = "unknown columns", "preference pair"  # reasons that are of the file, not of one row


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
    build: makes the row of (source, fields, those names); see `normal_form`.  stage: which reads such rows.
    """

    columns: Callable[[Columns], Names]
    build: Callable[[str, Fields, Names], Row]
    stage: str


def _first_of(known: Sequence[str], columns: Columns) -> Names:
    """Return the first known name that is a column, as a tuple of one or none."""
    return next(((name,) for name in known if name in columns), ())


def _both(first: Names, second: Names) -> Names:
    return first + second if first and second else ()


def _text_columns(columns: Columns) -> Names:
    return _first_of(names_of.TEXTS, columns)


def _message_columns(columns: Columns) -> Names:
    return _first_of(("messages",), columns)


def _pair_columns(columns: Columns) -> Names:
    return next((pair for pair in names_of.PAIRS if columns.issuperset(pair)), ())


def _alpaca_columns(columns: Columns) -> Names:
    return _both(_first_of(("instruction",), columns), _first_of(names_of.OUTPUTS, columns))


def _sharegpt_columns(columns: Columns) -> Names:
    return _first_of(("conversations", "conversation"), columns)


def _label_columns(columns: Columns) -> Names:
    label = _first_of(names_of.LABELS, columns)
    known = (pair for pair in names_of.TEXT_PAIRS if columns.issuperset(pair))
    texts = next(known, ()) or numbered(columns) or _first_of(names_of.LABELLED, columns)
    return _both(texts, label)


def _tag_columns(columns: Columns) -> Names:
    return _both(_first_of(names_of.WORDS, columns), _first_of(names_of.TAGS, columns))


def _preference_columns(columns: Columns) -> Names:
    return next((pair for pair in names_of.CHOICES if columns.issuperset(pair)), ())


def _ranking_columns(columns: Columns) -> Names:
    return _first_of(names_of.ANSWERS, columns) if _first_of(names_of.ASKED, columns) else ()


def _judged_columns(columns: Columns) -> Names:
    known = (_alpaca_columns, _pair_columns, _message_columns, _sharegpt_columns)
    answered = next((names for find in known if (names := find(columns))), ())
    return _both(answered, _first_of(names_of.VERDICTS, columns))


LAYOUTS = {
    "text": Layout(_text_columns, normal_form.text_row, "pretrain"),
    "messages": Layout(_message_columns, normal_form.chat_row, "sft"),
    "prompt_completion": Layout(_pair_columns, normal_form.pair_row, "sft"),
    "alpaca": Layout(_alpaca_columns, normal_form.alpaca_row, "sft"),
    "sharegpt": Layout(_sharegpt_columns, normal_form.chat_row, "sft"),
    "classification": Layout(_label_columns, normal_form.label_row, "classify"),
    "tags": Layout(_tag_columns, normal_form.tagged_row, "classify"),
    "preference": Layout(_preference_columns, preferences.preference_row, "preference"),
    "ranking": Layout(_ranking_columns, preferences.ranking_row, "preference"),
    "judged": Layout(_judged_columns, preferences.judged_row, "preference"),
    "prompt": Layout(prompt_columns, prompt_row, "ppo"),
}
COMPARING = ("preference", "ranking", "judged")  # of these a stage learns which answers are better, or good


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
        one_of("our name (left) in data.columns", ours, names_of.COLUMNS)


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
        fields, theirs = _renamed(record.fields, columns or {})
        empty = frozenset([name for name, value in fields.items() if value is None])
        layout, names = _layout(frozenset(fields), empty, accepts, format)
        if layout == "tags" and tag_names:
            fields = Fields(fields | {names[1]: normal_form.named_tags(fields[names[1]], tag_names)})
        if layout == "classification" and tag_names:
            fields = Fields(fields | {names[-1]: normal_form.named_class(fields[names[-1]], tag_names)})
        row = LAYOUTS[layout].build(record.source, fields, names)
        for text in row.texts():
            normal_form.check_text(text)
        if not names_of.WORTH.isdisjoint(fields):
            _check_worth(fields, row)
        return _with_unused(row, fields, record.fields, theirs)
    except BadRow as bad:
        return bad.at(record.source)


def _renamed(columns: dict[str, Any], names: Mapping[str, str]) -> tuple[Fields, Mapping[str, str]]:
    """Return the fields under our names, and the file's name of each that has another one.

    Columns of the file that would stand in their way are dropped.  names: {our name: the file's}.
    """
    if not names:
        return Fields(columns), names
    for ours, theirs in names.items():
        if theirs not in columns:
            detail = f"no column {theirs!r}, which data.columns maps to {ours}"
            close = nearest(theirs, map(str, columns), 1)
            remedy = f"did you mean {close[0]!r}?" if close else "fill the row"
            raise BadRow("missing column", detail, remedy)
    taken = set(names) | set(names.values())
    rest = {name: value for name, value in columns.items() if name not in taken}
    return Fields(rest | {ours: columns[theirs] for ours, theirs in names.items()}), names


def _with_unused(row: Row, fields: Fields, columns: dict[str, Any], names: Mapping[str, str]) -> Row:
    """Return the row with the columns of the file that nothing read.  names: {our name: the file's}."""
    unread = [names.get(name, name) for name in fields.unread()]
    if names:
        dropped = set(names) - set(names.values())
        unread += [name for name in columns if name in dropped and not names_of.blank(columns[name])]
    if not unread:
        return row
    return replace(row, unused=(*row.unused, *(f"column {name!r}" for name in unread)))


def _check_worth(fields: Fields, row: Row) -> None:
    """Raise BadRow for an answer that its row calls a bad one, and for a row without weight.

    What says that the row counts as any other is thereby read.
    """
    remedy = "set data.bad_rows=skip to leave such rows out; rename the column if it means something else"
    verdicts = {name: truth(fields.peek(name)) for name in names_of.VERDICTS}
    flags = {
        name: fields.peek(name) is good for name, good in names_of.FLAGS.items() if _is_flag(fields, name)
    }
    for name, good in (verdicts | flags).items():
        if row.kind not in ("pair", "chat") or good is None:
            continue
        if not good:
            detail = f"{name!r} is {fields[name]}: its answer must not be learnt"
            raise BadRow("rejected answer", detail, remedy)
        fields.get(name)
    weight = as_number(fields.peek(names_of.WEIGHT))
    if weight is not None and weight <= 0:
        raise BadRow("no weight", f"{names_of.WEIGHT!r} is {fields[names_of.WEIGHT]}", remedy)
    if weight == 1:
        fields.get(names_of.WEIGHT)


def _is_flag(fields: Fields, name: str) -> bool:
    return isinstance(fields.peek(name), bool)


@lru_cache(maxsize=1024)
def _layout(columns: Columns, empty: Columns, accepts: Accepts, format: str) -> tuple[str, Names]:
    """Return the layout of rows with these columns, and the columns that carry it.

    empty: columns that are null, as those of another layout are in a table for several.
    """
    candidates = accepts.layouts if format == "auto" else (format,)
    found = [
        (layout, names)
        for given in (columns - empty, columns)
        for layout in candidates
        if (names := LAYOUTS[layout].columns(columns)) and not given.isdisjoint(names)
    ]
    if format == "auto" and found[:1] == [("text", ("text",))] and _is_of_tree(columns, accepts):
        found = []
    if found:
        layout, names = found[0]
        label = _first_of(names_of.LABELS, columns - empty)
        # Nobody would learn the label.
        if format == "auto" and layout == "text" and label and "prompt_completion" in accepts.layouts:
            detail = f"a text with a column {label[0]!r}"
            remedy = (
                "set stage=classify to learn classes, data.format=text to learn the text alone, or map both: "
                f"data.columns='{{prompt: {names[0]}, completion: {label[0]}}}'"
            )
            raise BadRow("a label, and stage is not classify", detail, remedy)
        return layout, names
    if pair := _preference_columns(columns):
        raise BadRow(PREFERENCE, f"columns {pair[0]} and {pair[1]}", _chosen_alone(columns, pair[0]))
    given = ", ".join(sorted(map(str, columns))) or "none"
    raise BadRow(UNKNOWN, f"columns {given}", _remedy(columns, accepts, candidates))


def _is_of_tree(columns: Columns, accepts: Accepts) -> bool:
    """Return whether a text is one message of a tree, which only pretraining reads alone."""
    return columns.issuperset(("message_id", "parent_id")) and "prompt_completion" in accepts.layouts


def _chosen_alone(columns: Columns, chosen: str) -> str:
    """Return how to learn from both answers of a pair, and how to learn the chosen ones alone."""
    both = "set stage=preference or stage=reward to learn which is better"
    asked = _first_of(("prompt", "question", "instruction", "query", "input"), columns)
    talk = f"data.columns='{{messages: {chosen}}}'"
    if not asked:
        return f"{both}; to learn the chosen ones alone: {talk}, or '{{text: {chosen}}}'"
    texts = f"data.columns='{{prompt: {asked[0]}, completion: {chosen}}}'"
    return f"{both}; to learn the chosen ones alone: {texts}, or {talk} if {chosen} is the whole conversation"


def _remedy(columns: Columns, accepts: Accepts, candidates: Names) -> str:
    """Return what to do about unknown columns; another stage may know them."""
    if not columns.isdisjoint(TREES) or is_vote(dict.fromkeys(columns)):
        return f"turn {'trees' if not columns.isdisjoint(TREES) else 'votes'} into rows first: {CONVERT}"
    for name, layout in LAYOUTS.items():
        if name not in accepts.layouts and layout.columns(columns):
            return f"set stage={layout.stage}: these are columns of {name}"
    return f"stage {accepts.stage} reads {' or '.join(candidates)}; data.columns maps names"
