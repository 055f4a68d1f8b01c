"""What to do about files whose columns have names of their own: one proposal instead of a reject per row."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from graft.data.columns import COLUMNS, LABELS, OUTPUTS, PAIRS, TEXT_PAIRS, blank, numbered
from graft.data.layouts import CONVERT, PREFERENCE, UNKNOWN, Accepts
from graft.data.read import records
from graft.data.report import DataReport, RejectedRows
from graft.data.rows import Record
from graft.errors import DataError, listed

LOOKED_AT = 50  # rows from which a proposal is made
SHOWN = 60  # characters of a value in a message
# Words in the names of columns that hold answers.
ANSWERS = {word for pair in PAIRS for word in pair[1:]} | set(OUTPUTS) | {
    "ref", "reference", "reply", "summary", "label", "translation", "solution", "highlights", "code", "chosen"
}  # fmt: skip
# Words in the names of columns that hold the better and the worse answer of a pair.
BETTER = {"chosen", "better", "preferred", "winner", "win", "good", "positive", "accepted"}
WORSE = {"rejected", "worse", "dispreferred", "loser", "lose", "bad", "negative"}
MEANING = {
    "prompt": "is asked",
    "completion": "is answered",
    "text": "is the text",
    "text_pair": "the text beside it",
    "label": "is the class",
    "chosen": "is the better answer",
    "rejected": "the worse one",
}

Rows = Sequence[Mapping[str, Any]]


class UnknownColumns(RejectedRows):
    """Most rows have columns that no layout knows: a defect of the file, not of its rows."""

    def __init__(self, report: DataReport, given: str, expected: str, remedy: str) -> None:
        self.report = report
        DataError.__init__(self, given, expected, remedy)


def unknown_columns(settings: Any, accepts: Accepts, report: DataReport) -> UnknownColumns | None:
    """Return the error of a file whose columns are unknown in all or most rows; None for any other file.

    settings: with `train` and `bad_rows`.  report: of the training rows read.
    """
    strange = [reject for reject in report.rejects if reject.reason in (UNKNOWN, PREFERENCE)]
    strict = settings.bad_rows == "strict"
    if len(strange) < 2 or len(strange) < report.read // 2 + 1 or (not strict and len(strange) < report.read):
        return None
    found = (r for r in records(settings.train, tagged="tags" in accepts.layouts) if isinstance(r, Record))
    wanted = {reject.source for reject in strange[:LOOKED_AT]}
    rows = [record.fields for record in islice((r for r in found if r.source in wanted), len(wanted))]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    share = f"{len(strange):,} of {report.read:,} rows have no"
    share = "no row has" if len(strange) == report.read else share
    given = f"{share} columns that are known: {listed(columns, 12)}. {strange[0].source}: {_shown(rows[0])}"
    if strange[0].reason == PREFERENCE:
        given = f"{len(strange):,} of {report.read:,} rows are preference pairs. {strange[0].detail}"
    expected = f"rows of {accepts.stage}: {' or '.join(accepts.layouts)}"
    known = any(words in strange[0].remedy for words in ("set stage", CONVERT))
    remedy = strange[0].remedy if known else _remedy(rows, columns, accepts)
    return UnknownColumns(report, given, expected, remedy)


def _remedy(rows: Rows, columns: Sequence[str], accepts: Accepts) -> str:
    """Return a mapping of the columns that would fit the stage, and what it means."""
    guess = propose(rows, columns, accepts.layouts)
    if not guess:
        ours = ("prompt", "chosen", "rejected") if "preference" in accepts.layouts else COLUMNS[:1]
        named = ", ".join(f"{name}: NAME" for name in ours)
        return f"map the names with data.columns, for instance data.columns='{{{named}}}'"
    command = ", ".join(f"{ours}: {_quoted(theirs)}" for ours, theirs in guess.items())
    said = " and ".join(f"{theirs} {MEANING[ours]}" for ours, theirs in guess.items())
    return f"if {said}: data.columns='{{{command}}}'"


def propose(rows: Rows, columns: Sequence[str], layouts: Sequence[str]) -> dict[str, str]:
    """Return {our name: the file's} that would make rows of one of these layouts; empty without an idea.

    Names of other cases are known; otherwise the two longest texts are taken, in their order in the file, the
    one that is called an answer last. A class is a column of few, short values.
    """
    lower = {name.lower().strip(): name for name in reversed(columns)}
    texts = _texts(rows, columns)
    if "prompt_completion" in layouts:
        for pair in PAIRS:
            if set(pair) <= set(lower):
                return dict(zip(("prompt", "completion"), (lower[name] for name in pair), strict=True))
        if len(texts) > 1:
            longest = sorted(texts[:2], key=columns.index)
            asked, answered = sorted(longest, key=lambda name: name.lower() in ANSWERS)
            return {"prompt": asked, "completion": answered}
        return {}
    if "preference" in layouts:
        return _sides(texts, columns)
    if "classification" in layouts:
        label = next((lower[name] for name in LABELS if name in lower), None) or _class(rows, columns)
        pairs = (pair for pair in TEXT_PAIRS if set(pair) <= set(lower))
        two = next(pairs, None) or numbered(frozenset(lower))
        found = [lower[name] for name in two] or [name for name in texts if name != label][:1]
        if not found or not label:
            return {}
        return dict(zip(("text", "text_pair"), found, strict=False)) | {"label": label}
    return {"text": texts[0]} if "text" in layouts and texts else {}


def _sides(texts: Sequence[str], columns: Sequence[str]) -> dict[str, str]:
    """Return the columns of a better and a worse answer by their names, and the longest other text."""
    said = {name: set(re.split("[^a-z]+", name.lower())) for name in columns}
    better = next((name for name in columns if said[name] & BETTER), None)
    worse = next((name for name in columns if said[name] & WORSE), None)
    if better is None or worse is None:
        return {}
    asked = [name for name in texts if name not in (better, worse)]
    return dict(zip(("prompt",), asked, strict=False)) | {"chosen": better, "rejected": worse}


def _texts(rows: Rows, columns: Sequence[str]) -> list[str]:
    """Return the columns that hold texts in most rows, the longest first."""
    lengths = {}
    for name in columns:
        texts = [row[name] for row in rows if isinstance(row.get(name), str) and not blank(row[name])]
        if len(texts) > len(rows) // 2:
            lengths[name] = sum(map(len, texts)) / len(texts)
    return sorted(lengths, key=lambda name: -lengths[name])


def _class(rows: Rows, columns: Sequence[str]) -> str | None:
    """Return the column with the fewest different values, if they repeat; numbers or short texts."""
    best, fewest = None, len(rows)
    for name in columns:
        values = [row.get(name) for row in rows]
        if all(isinstance(value, int) or (isinstance(value, str) and len(value) < 40) for value in values):
            different = len(Counter(map(str, values)))
            if 1 < different < fewest:
                best, fewest = name, different
    return best


def _shown(row: Mapping[str, Any]) -> str:
    return listed((f"{name}={str(value)[:SHOWN]!r}" for name, value in row.items()), 8)


def _quoted(name: str) -> str:
    """Return a name as YAML reads it inside braces."""
    return name if name.replace("_", "").isalnum() and not name[0].isdecimal() else f'"{name}"'
