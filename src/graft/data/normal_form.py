"""The row of each layout in its normal form (`rows.Row`), one function per layout.

Each function takes the row's place, its fields by name, and the names of the columns that carry the layout,
which the row has. It raises BadRow if a column holds anything else than it should.
"""

from collections.abc import Sequence
from typing import Any

from graft.data.columns import CONTEXT, SYSTEM, Fields, blank
from graft.data.messages import messages_of, tools_of, with_answer
from graft.data.rows import BadRow, Row, json_in, turns
from graft.data.tags import first_orphan

Names = tuple[str, ...]
Messages = list[dict[str, Any]]

# What a turn calls its speaker and its text.
SPEAKER = ("role", "from")
SAID = ("content", "value")
SYSTEMS = ("system", "developer")  # the roles of system prompts


def text_row(source: str, fields: Fields, names: Names) -> Row:
    """Build the row of a text.  names: (text,)."""
    return Row(source, "text", string_in(fields, names[0], "empty text"))


def pair_row(source: str, fields: Fields, names: Names) -> Row:
    """Build the row of a prompt with its completion: two texts, or lists of messages.

    A context stands before the question. A system prompt makes a conversation of the two texts; so does an
    empty one, because other rows of the file have one.
    """
    asked, answered = names
    if answered == "answers":
        return _answered_row(source, fields, asked)
    if isinstance(fields[asked], list) or isinstance(fields[answered], list):
        prompt = with_system(fields, turns_or_text(fields, asked, "user", "no prompt"))
        completion = turns_or_text(fields, answered, "assistant", "no answer")
        return Row(source, "chat", with_answer(prompt + completion), tools_of(fields), first=len(prompt))
    texts = with_context(fields, asked), string_in(fields, answered, "no answer")
    # Rows of translations name the system that made them.
    if asked == "source" or not any(name in fields for name in SYSTEM):
        return Row(source, "pair", texts)
    return Row(source, "chat", system_in(fields) + turns(*texts), tools_of(fields))


def alpaca_row(source: str, fields: Fields, names: Names) -> Row:
    """Build the row of an instruction with its output.  names: ("instruction", output)."""
    prompt = instruction_in(fields)
    answer = {"role": "assistant", "content": string_in(fields, names[1], "no answer")}
    return Row(source, "chat", [*prompt, answer], tools_of(fields))


def instruction_in(fields: Fields) -> Messages:
    """Return an instruction, with what it is about, after its system prompt and earlier turns."""
    question = string_in(fields, "instruction", "no prompt")
    for name in ("input", CONTEXT):
        if not blank(fields.get(name)):
            question += "\n" + string_in(fields, name, "no prompt")
    messages: Messages = []
    for turn in fields.get("history") or []:
        if not (isinstance(turn, list | tuple) and len(turn) == 2):
            raise BadRow(
                "bad messages", "history is not a list of pairs", "write [[instruction, answer], ...]"
            )
        messages += messages_of(turns(*turn), "role", "content")
    return [*system_in(fields), *messages, {"role": "user", "content": question}]


def chat_row(source: str, fields: Fields, names: Names) -> Row:
    """Build the row of a conversation, whatever its turns call speaker and text.  names: (messages,)."""
    messages = with_system(fields, turns_in(fields[names[0]]))
    return Row(source, "chat", with_answer(messages), tools_of(fields))


def label_row(source: str, fields: Fields, names: Names) -> Row:
    """Build the row of a text, or of two texts, with their label.  names: (text, [text,] label)."""
    texts = tuple(string_in(fields, name, "empty text") for name in names[:-1])
    return Row(source, "label", (texts[0] if len(texts) == 1 else texts, _label(fields, names[-1])))


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


def named_class(label: Any, names: Sequence[str]) -> Any:
    """Replace the number of a class, which a table may hold as text, by its name; others stay as they are.

    >>> named_class(1, ["negative", "positive"]), named_class("0", ["negative", "positive"])
    ('positive', 'negative')
    """
    number = int(label) if isinstance(label, str) and label.strip().isdecimal() else label
    known = type(number) is int and 0 <= number < len(names)
    return names[number] if known else label


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


def string_in(fields: Fields, name: str, reason: str) -> str:
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


def _label(fields: Fields, name: str) -> str | int:
    """Return the class of a row: a string or an integer, which pandas may have written as 1.0."""
    label = fields[name]
    if blank(label):
        raise BadRow("no label", f"{name!r} is empty", "fill it or remove the row")
    if isinstance(label, bool):
        return str(label)
    if isinstance(label, float) and label.is_integer():
        return int(label)
    if isinstance(label, float):
        remedy = "write one label, a string or an integer, for a range of scores"
        raise BadRow(
            "bad label", f"{name!r} is {label}: a number is not a class, and there is no regression", remedy
        )
    if not isinstance(label, str | int):
        detail = f"{name!r} is {type(label).__name__}; a row has one class"
        raise BadRow("bad label", detail, "write one label, a string or an integer")
    return label


def turns_in(turns: Any) -> Messages:
    """Return the messages of turns, which may be the JSON text of a list."""
    if isinstance(turns, str) and turns.lstrip()[:1] == "[":
        try:
            turns = json_in(turns)
        except ValueError:
            raise BadRow("bad messages", "the turns are not JSON", "write a list of turns") from None
    if isinstance(turns, dict) and turns and all(isinstance(column, list) for column in turns.values()):
        # Some data sets of the hub keep the turns by columns.
        turns = [dict(zip(turns, cells, strict=False)) for cells in zip(*turns.values(), strict=False)]
    given = [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
    return messages_of(turns, _used(SPEAKER, given), _used(SAID, given))


def _used(names: Names, turns: Messages) -> str:
    """Return the first of the names under which any turn says something; the first of all if none does."""
    for name in names:
        for turn in turns:
            if turn.get(name) is not None:
                return name
    return names[0]


def turns_or_text(fields: Fields, name: str, role: str, reason: str) -> Messages:
    """Return a column's messages; a text is one turn of this role."""
    if isinstance(fields[name], list):
        return turns_in(fields[name])
    return [{"role": role, "content": string_in(fields, name, reason)}]


def _answered_row(source: str, fields: Fields, asked: str) -> Row:
    """Build the row of a question with a list of answers, as SQuAD has it; the first one is learnt."""
    answers = fields["answers"]
    texts = answers.get("text") if isinstance(answers, dict) else answers
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadRow("not text", f"'answers' is {type(answers).__name__}", 'write {"text": [...]} or [...]')
    if not texts or blank(texts[0]):
        raise BadRow("no answer", "'answers' is empty", "fill it or remove the row")
    unused = ("further answers of a row",) if len(set(texts)) > 1 else ()
    return Row(source, "pair", (with_context(fields, asked), texts[0]), unused=unused)


def with_context(fields: Fields, asked: str) -> str:
    """Return what is asked, after the text that it is about."""
    question = string_in(fields, asked, "no prompt")
    if not isinstance(fields.peek(CONTEXT), str) or blank(fields.peek(CONTEXT)):
        return question
    return f"{fields[CONTEXT]}\n{question}"


def system_in(fields: Fields) -> Messages:
    """Return the system message of a row that has it in a column of its own, or none."""
    for name in SYSTEM:
        if not blank(fields.peek(name)):
            return [{"role": "system", "content": string_in(fields, name, "empty text")}]
    return []


def with_system(fields: Fields, messages: Messages) -> Messages:
    """Return the messages after the system prompt of the row's own column.

    A conversation that begins with one keeps it; a column that says something else stays unread.
    """
    if not messages or messages[0]["role"] not in SYSTEMS:
        return system_in(fields) + messages
    for name in SYSTEM:
        if isinstance(said := fields.peek(name), str) and said.strip() == messages[0]["content"].strip():
            fields.get(name)
    return messages
