"""Rows and rejects: every row of a file becomes one of the two, never neither.

rows read = rows used + Σ rejected by reason        (checked before every run)
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

PREFERRED = ("ranking", "judged")  # kinds of rows that tell which answers are good
DEPTH = 100  # levels of a value; the deepest schemas of tools have twenty
ASKING = "prompt"  # the kind of rows whose answers the model writes itself


@dataclass(frozen=True, slots=True)
class Record:
    """One row as the file has it.  source: `path:line`; for JSON arrays, Parquet and hub data `path:row`."""

    source: str
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that cannot be used.

    reason: a short phrase, the same for every row with this defect, by which rejects are counted.
    detail: what is wrong with this very row.  remedy: what to do about it.
    """

    source: str
    reason: str
    detail: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}: {self.detail}; {self.remedy}"


@dataclass(frozen=True, slots=True)
class Row:
    """One usable row in the normal form.

    kind, value: "text" str; "pair" (prompt, completion); "chat" a list of {role, content, ...}; "label"
    (text or a pair of texts, label); "tags" (words, tags), one tag a word; "ranking" (prompt, answers,
    scores), two or more answers, the best first, and a score for each (equal ones are not compared) or None;
    "judged" (prompt, answer, good). Prompt and answers of the last two are texts, or lists of messages: an
    answer is the turns after the prompt. "prompt" (prompt, columns): the other columns of the row by name.
    tools: JSON schemas that the chat template shows.  first: index of the first message that may be learnt.
    unused: what the row says and the model will not read, such as "column 'context'"; equal things have equal
    names, by which rows are counted.
    """

    source: str
    kind: str
    value: Any
    tools: list[Any] | None = None
    first: int = 0
    unused: tuple[str, ...] = ()

    def key(self) -> bytes:
        """Return 8 bytes that depend on the content alone: equal rows of different files share them."""
        content = json.dumps([self.kind, self.value, self.tools], sort_keys=True, default=str)
        return hashlib.blake2b(content.encode(), digest_size=8).digest()

    def group(self) -> bytes:
        """Return 8 bytes that equal those of a row with the same prompt, where rows ask or compare answers.

        For all other rows these are the bytes of `key`.
        """
        if self.kind not in (*PREFERRED, ASKING):
            return self.key()
        return replace(self, kind=ASKING, value=self.value[0]).key()

    def texts(self) -> list[str]:
        """Return every string of this row that the model will read."""
        if self.kind == "tags":
            return [*self.value[0], *self.value[1]]
        if self.kind == "chat":
            return list(_texts([self.value, self.tools]))
        if self.kind == "ranking":
            return list(_texts([self.value[0], *self.value[1], self.tools]))
        if self.kind == "judged":
            return list(_texts([*self.value[:2], self.tools]))
        if self.kind == ASKING:
            return list(_texts([self.value[0], self.tools]))
        if self.kind == "label":
            return [*self.asked, str(self.value[1])]
        return [self.value] if self.kind == "text" else [str(part) for part in self.value]

    @property
    def plain(self) -> bool:
        """Whether the row is of texts that stay as they are: no chat template writes it."""
        if self.kind in (*PREFERRED, ASKING):
            return isinstance(self.value[0], str)
        return self.kind in ("text", "pair")

    @property
    def asked(self) -> tuple[str, ...]:
        """The texts of a row with a label: one or two."""
        texts = self.value[0]
        return (texts,) if isinstance(texts, str) else tuple(texts)


def _texts(value: dict[str, Any] | list[Any]) -> Iterator[str]:
    """Yield every string in a list or a dict, however deep; keys are not among them."""
    for part in value.values() if isinstance(value, dict) else value:
        if isinstance(part, str):
            yield part
        elif isinstance(part, dict | list):
            yield from _texts(part)


def turns(prompt: Any, answer: Any) -> list[dict[str, Any]]:
    """Return a prompt and its answer as the two messages of a conversation."""
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def as_chat(row: Row) -> Row:
    """Return a prompt, alone or with its answers, as a conversation; any other row as it is."""
    if row.kind == "pair":
        return replace(row, kind="chat", value=turns(*row.value))
    if row.kind == ASKING and row.plain:
        return replace(row, value=(turns(row.value[0], "")[:1], row.value[1]))
    if row.kind not in PREFERRED or not row.plain:
        return row
    prompt, said, verdict = row.value
    if row.kind == "judged":
        asked, answer = turns(prompt, said)
        return replace(row, value=([asked], [answer], verdict))
    talks = [turns(prompt, answer) for answer in said]
    return replace(row, value=(talks[0][:1], tuple(talk[1:] for talk in talks), verdict))


def with_answers(row: Row) -> list[Row]:
    """Return each answer of a ranking, or that of a judged row, after its prompt as a "pair" or a "chat"."""
    prompt, answers, _ = row.value
    if row.kind == "judged":
        answers = (answers,)
    if isinstance(prompt, str):
        return [replace(row, kind="pair", value=(prompt, answer)) for answer in answers]
    first = len(prompt)
    return [replace(row, kind="chat", value=[*prompt, *answer], first=first) for answer in answers]


def compared(scores: Sequence[float] | None, answers: int) -> list[tuple[int, int]]:
    """Return the places (better, worse) of the pairs in a ranking; answers of equal scores are no pair.

    >>> compared(None, 3), compared((2.0, 1.0, 1.0), 3)
    ([(0, 1), (0, 2), (1, 2)], [(0, 1), (0, 2)])
    """
    pairs = combinations(range(answers), 2)
    return [(a, b) for a, b in pairs if scores is None or scores[a] != scores[b]]


def alike(rows: list[Row]) -> list[Row]:
    """Return rows of which no file has conversations beside prompts with their answers.

    Where one row of a file has a system prompt and another has no such column, both are conversations: one
    would be written by the chat template and the other without it.
    """
    files = talking(rows)
    return [as_chat(row) if file_of(row) in files else row for row in rows] if files else rows


def talking(rows: Iterable[Row]) -> set[str]:
    """Return the files that have conversations among these rows."""
    return {file_of(row) for row in rows if row.kind in ("chat", *PREFERRED, ASKING) and not row.plain}


def file_of(row: Row) -> str:
    """Return the name of the file that a row is of."""
    return row.source.rpartition(":")[0]


class BadRow(Exception):
    """A row turned out to be unusable. Whoever knows its place catches this and makes a Reject of it."""

    def __init__(self, reason: str, detail: str, remedy: str) -> None:
        super().__init__(reason, detail, remedy)

    def at(self, source: str) -> Reject:
        """Return the Reject of the row at `source`."""
        return Reject(source, *self.args)


def require_shallow(value: Any) -> None:
    """Raise BadRow for a value of a row that is nested so deeply that walking through it would fail."""
    level, depth = [value], 0
    while level := [
        part
        for each in level
        if isinstance(each, dict | list)
        for part in (each.values() if isinstance(each, dict) else each)
    ]:
        depth += 1
        if depth > DEPTH:
            raise _too_deep()


def _too_deep() -> BadRow:
    return BadRow("bad JSON", f"nested too deeply: more than {DEPTH} levels", "flatten the row")


def json_in(text: str) -> Any:
    """Return the JSON value that stands in a text of a row. Raises ValueError, and BadRow if it is deep."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise _too_deep() from None
    if text.count("[") + text.count("{") > DEPTH:
        require_shallow(value)
    return value


def by_reason(rejects: Iterable[Reject]) -> dict[str, int]:
    """Count the rejects of each reason, the most frequent first."""
    return dict(Counter(reject.reason for reject in rejects).most_common())
