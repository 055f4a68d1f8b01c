"""The rows of a batch file: what each asks, in any layout that we read, and which adapter it names.

    {"prompt": "...", "adapter": "sql"}      prompt | question | instruction | messages | ... to a model that
                                             writes; text | two texts | tokens to a task head
    {"prompt": "...", "adapter": ""}         an empty name is the bare base

All other columns go along into the answers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft.data.columns import LABELLED, TEXT_PAIRS, TEXTS, WORDS, Fields, blank, numbered
from graft.data.normal_form import check_text, string_in
from graft.data.prompt_rows import prompt_columns, prompt_row
from graft.data.read import records
from graft.data.rows import BadRow, Reject
from graft.data.templates import Prompt

ADAPTER = "adapter"  # the column that names one
BASE = "base"  # the name of the bare base, where no adapter is called so


@dataclass(frozen=True)
class AskedRow:
    """One row of a batch file.

    source: `file:line`.  fields: all columns.  unreadable: why there are none.
    """

    source: str
    fields: Mapping[str, Any]
    unreadable: str = ""

    @property
    def named(self) -> bool:
        """Whether the row has the column that names an adapter."""
        return ADAPTER in self.fields

    @property
    def adapter(self) -> str | None:
        """The adapter that the row names, None for the bare base."""
        name = self.fields.get(ADAPTER)
        return None if blank(name) else str(name).strip()


def read_rows(where: str | Path) -> list[AskedRow]:
    """Return the rows of a file or a folder, in their order. Raises DataError if nothing can be read."""
    found = []
    for record in records(where):
        if isinstance(record, Reject):
            found.append(AskedRow(record.source, {}, f"{record.reason}: {record.detail}; {record.remedy}"))
        else:
            found.append(AskedRow(record.source, record.fields))
    return found


def prompt_in(row: AskedRow) -> Prompt:
    """Return what a row asks a model that writes. Raises BadRow."""
    fields = Fields(row.fields)
    names = prompt_columns(_filled(row))
    if names:
        made = prompt_row(row.source, fields, names)
        prompt: Prompt = made.value[0]
        texts = made.texts()
        if made.tools:
            prompt = {"messages": prompt, "tools": made.tools}
    else:
        prompt = string_in(fields, _one_of(row, TEXTS), "empty text")
        texts = [prompt]
    for text in texts:
        check_text(text)
    return prompt


def text_in(row: AskedRow) -> str | tuple[str, str] | list[str]:
    """Return what a row shows to a task head: a text, two texts, or words. Raises BadRow."""
    fields, columns = Fields(row.fields), _filled(row)
    pair = next((pair for pair in TEXT_PAIRS if columns.issuperset(pair)), ()) or numbered(columns)
    if pair:
        first, second = (string_in(fields, name, "empty text") for name in pair)
        return first, second
    for column in WORDS:
        words = fields.peek(column)
        if isinstance(words, list) and words and all(isinstance(word, str) and word for word in words):
            return words
    name = next((name for name in (*LABELLED, *TEXTS) if name in columns), None)
    if name is not None:
        return string_in(fields, name, "empty text")
    prompt = prompt_in(row)
    if isinstance(prompt, str):
        return prompt
    turns = prompt["messages"] if isinstance(prompt, dict) else prompt
    return str(turns[-1].get("content") or "")


def _filled(row: AskedRow) -> frozenset[str]:
    """Return the columns of a row that hold something."""
    return frozenset(name for name, value in row.fields.items() if not blank(value))


def _one_of(row: AskedRow, names: tuple[str, ...]) -> str:
    """Return the first of these columns that the row has filled. Raises BadRow."""
    columns = _filled(row)
    for name in names:
        if name in columns:
            return name
    given = ", ".join(sorted(map(str, row.fields))) or "none"
    raise BadRow("asks nothing", f"columns {given}", "write a column prompt, messages or text")
