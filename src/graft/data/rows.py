"""Rows and rejects: every row of a file becomes one of the two, never neither.

rows read = rows used + Σ rejected by reason                              (checked before every run)
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from graft.errors import DataError

SHOWN = 20  # rejects that an error message lists one by one


@dataclass(frozen=True, slots=True)
class Record:
    """One row as it lies in the file.  source: `path:line`; for JSON arrays, Parquet and hub data `path:row`."""

    source: str
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that cannot be used.  reason: a short word for counting; detail: what this row has; remedy: what to do."""

    source: str
    reason: str
    detail: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}: {self.detail}; {self.remedy}"


@dataclass(frozen=True, slots=True)
class Row:
    """One usable row in the normal form.

    kind, value: "text" str; "pair" (prompt, completion); "chat" a list of {role, content, ...}; "label" (text, label);
    "tags" (words, tags).
    tools: JSON schemas that the chat template shows.  first: index of the first message that may be learnt.
    """

    source: str
    kind: str
    value: Any
    tools: list[Any] | None = None
    first: int = 0

    def key(self) -> bytes:
        """8 bytes that equal rows share, whatever file and line they stand on."""
        content = json.dumps([self.kind, self.value, self.tools], sort_keys=True, default=str)
        return hashlib.blake2b(content.encode(), digest_size=8).digest()

    def texts(self) -> list[str]:
        """Every string that somebody wrote into this row and that the model will read."""
        if self.kind == "tags":
            return [*self.value[0], *self.value[1]]
        if self.kind == "chat":
            return [text for message in self.value for text in message.values() if isinstance(text, str)]
        return [self.value] if self.kind == "text" else [str(part) for part in self.value]


def turns(prompt: Any, answer: Any) -> list[dict[str, Any]]:
    """Return a prompt and its answer as the two messages of a conversation."""
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def as_chat(row: Row) -> Row:
    """Return a prompt with its answer as a conversation of two turns; any other row as it is."""
    return Row(row.source, "chat", turns(*row.value), row.tools) if row.kind == "pair" else row


class BadRow(Exception):
    """Raised inside the package where a row turns out unusable; becomes a Reject at the row's source."""

    def __init__(self, reason: str, detail: str, remedy: str) -> None:
        super().__init__(reason, detail, remedy)

    def at(self, source: str) -> Reject:
        return Reject(source, *self.args)


def by_reason(rejects: Iterable[Reject]) -> dict[str, int]:
    """How many rows each reason cost, most frequent first."""
    return dict(Counter(reject.reason for reject in rejects).most_common())


def refuse(rejects: Sequence[Reject], read: int) -> DataError:
    """The error that stops a strict run: the first rejects by name, all of them by count."""
    counts = ", ".join(f"{reason} {n}" for reason, n in by_reason(rejects).items())
    listed = "\n  ".join(str(reject) for reject in rejects[:SHOWN])
    more = f"\n  ... and {len(rejects) - SHOWN} more" if len(rejects) > SHOWN else ""
    return DataError(
        f"{len(rejects)} of {read} rows cannot be used ({counts}):\n  {listed}{more}\n",
        "every row usable, because data.bad_rows is strict",
        "repair these rows, or set data.bad_rows=skip to leave them out and list them in rejected.jsonl",
    )
