"""Rows in memory: lists, generators, data sets of `datasets`, tables of pandas, polars and pyarrow.

They become a file of JSON Lines, one row a line, and are read from it as any other file is: by the same
checks, and any number of times. A generator is read once. Row 17 is line 17, counted from 1.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from pathlib import Path, PurePath
from typing import IO, Any
from uuid import UUID

from graft.data.folders import HUB_NAME, kind_of
from graft.data.tool_calls import without_nulls
from graft.errors import DataError

AT_ONCE = 1000  # rows of a table that become Python objects at one time
LIBRARIES = ("datasets", "pandas", "polars", "pyarrow")
FORMS = (
    "dicts of columns: a list or a generator of them, a data set of `datasets`, a table of pandas, polars or "
    "pyarrow"
)


def is_rows(given: Any) -> bool:
    """Return whether a value of data.train, eval or test is rows, and no name of rows, share or None.

    A list of strings is names if one of them is that of a file, and texts if one holds a blank and none is.
    """
    if given is None or isinstance(given, str | bytes | PurePath | int | float):
        return False
    if not isinstance(given, list | tuple):
        return True
    if not given or not all(isinstance(entry, str | PurePath) for entry in given):
        return True
    named = any(isinstance(entry, PurePath) or _is_name(entry) for entry in given)
    return not named and any(any(map(str.isspace, entry)) for entry in given)


def _is_name(text: str) -> bool:
    """Return whether a string in a list is surely the name of rows."""
    if text.startswith("hub:") or HUB_NAME.fullmatch(text):
        return True
    if len(text) > 4096 or "\n" in text or "\0" in text:
        return False
    return (kind_of(Path(text)) is not None and " " not in text) or _exists(text)


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except OSError:  # a name that is too long for this file system
        return False


def splits(data: Any) -> Mapping[str, Any]:
    """Return what a call is given as its data as keys of a recipe's `data:`.

    A DatasetDict gives its splits: train, validation (to eval) and test. Anything else but keys is `train`.
    """
    if _library(data) == "datasets" and isinstance(data, Mapping):
        if "train" not in data:
            raise DataError(
                f"data has the splits {', '.join(map(str, data)) or 'none'}",
                "a split called train",
                "name the split to learn from: data={'train': splits['NAME']}",
            )
        names = {"train": "train", "eval": "validation", "test": "test"}
        return {ours: data[theirs] for ours, theirs in names.items() if theirs in data}
    return data if isinstance(data, Mapping) else {"train": data}


def kind_of_rows(given: Any) -> str:
    """Return in words what rows are given as: "a list", "a pandas DataFrame"."""
    library = _library(given)
    return f"a {library} {type(given).__name__}" if library else f"a {type(given).__name__}"


def write_rows(given: Any, stream: IO[bytes], name: str) -> int:
    """Write rows as JSON Lines, one a line; return how many there are.

    name: of a row in messages, such as "train row".
    Raises DataError for an object that holds no rows, and for a row that cannot be written; it is named.
    """
    number = 0
    for number, row in enumerate(_rows_of(given, name), 1):
        stream.write(_line(row, f"{name} {number}"))
    if not number:
        raise DataError(f"there is no {name}: {kind_of_rows(given)} without rows", FORMS, "give rows")
    return number


def _library(given: Any) -> str | None:
    """Return which library a data set or a table is of; None for anything else."""
    roots = (cls.__module__.partition(".")[0] for cls in type(given).__mro__)
    return next((root for root in roots if root in LIBRARIES), None)


def _rows_of(given: Any, name: str) -> Iterator[Any]:
    """Yield rows one after the other, never all of a table at once."""
    library = _library(given)
    if library == "datasets" and isinstance(given, Mapping):
        raise DataError(
            f"the {name}s are {kind_of_rows(given)} with the splits {', '.join(map(str, given))}",
            "one split",
            "give it as data= alone, or one of its splits",
        )
    if library == "datasets":
        # As of Parquet: an object has the keys of all others of its column, null where its row had none.
        return ({key: without_nulls(value) for key, value in row.items()} for row in given)
    if library == "pandas" and hasattr(given, "columns"):
        return _of_pandas(given, name)
    if library == "polars" and hasattr(given, "collect"):  # a LazyFrame
        given = given.collect()
    if library == "polars" and hasattr(given, "iter_rows"):
        return iter(given.iter_rows(named=True))
    if library == "pyarrow":
        batches = given.to_batches(max_chunksize=AT_ONCE) if hasattr(given, "to_batches") else [given]
        batches = given if hasattr(given, "read_next_batch") else batches
        rows = (row for batch in batches for row in batch.to_pylist())
        return ({key: without_nulls(value) for key, value in row.items()} for row in rows)
    if isinstance(given, str | bytes | Mapping) or not _can_iterate(given):
        raise DataError(
            f"the {name}s are {kind_of_rows(given)}",
            FORMS,
            "put one row into a list; or write the rows into a file, one a line, and give its path",
        )
    return iter(given)


def _can_iterate(given: Any) -> bool:
    return isinstance(given, Iterable) or (hasattr(given, "__getitem__") and hasattr(given, "__len__"))


def _of_pandas(frame: Any, name: str) -> Iterator[dict[Any, Any]]:
    """Yield the rows of a pandas DataFrame; an index is a column if it has a name."""
    if not frame.columns.is_unique:
        twice = str(next(iter(frame.columns[frame.columns.duplicated()])))
        raise DataError(f"the {name}s have two columns {twice!r}", "columns of different names", "rename one")
    for at in range(0, len(frame), AT_ONCE):
        part = frame.iloc[at : at + AT_ONCE]
        part = part.reset_index() if any(part.index.names) else part
        yield from part.to_dict("records")


def _line(row: Any, source: str) -> bytes:
    """Return a row as a line of JSON; a string is the row {"text": string}."""
    if isinstance(row, str):
        row = {"text": row}
    if not isinstance(row, Mapping):
        raise DataError(
            f"{source} is {kind_of_rows(row)}", "a dict of columns, or a text", "write {'text': ...} or alike"
        )
    fields: dict[str, Any] = {}
    for key, value in row.items():
        try:
            given = plain(value)
        except (TypeError, RecursionError) as error:
            held = "itself, or too deep a nesting" if isinstance(error, RecursionError) else str(error)
            raise DataError(
                f"{source}: column {str(key)!r} holds {held}",
                "texts, numbers, true, false, None, dates, and lists and dicts of these",
                "leave the column out, or write its values as text or numbers",
            ) from None
        if str(key) in fields:
            given_names = f"{source} has two columns that are called {str(key)!r}"
            raise DataError(given_names, "columns of different names", "rename one")
        fields[str(key)] = given
    try:
        return json.dumps(fields, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a character: the reader names it
        return json.dumps(fields).encode() + b"\n"


def plain(value: Any) -> Any:
    """Return a value as JSON has it. Numbers that are none, and what pandas calls missing, become None.

    Raises TypeError, with its words, for what no JSON can hold.
    """
    if isinstance(value, str):
        return str(value.value) if isinstance(value, Enum) else str(value)
    if value is None or isinstance(value, bool) or type(value) is int:
        return value
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return _finite(float(value))
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return _of_decimal(value)
    if isinstance(value, UUID | PurePath):
        return str(value)
    return _of_library(value)


def _finite(value: float) -> float | None:
    if math.isinf(value):
        raise TypeError(f"the number {value}")
    return None if math.isnan(value) else value


def _of_decimal(value: Decimal) -> int | float | None:
    if not value.is_finite():
        return _finite(float(value))
    return int(value) if value == value.to_integral_value() else float(value)


def _of_library(value: Any) -> Any:
    """Return a scalar or an array of numpy, torch, pandas, polars or pyarrow as plain values."""
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if kind in ("M", "m"):  # times of numpy, whose tolist counts nanoseconds
        texts = value.astype(str)
        return _dates(texts.tolist() if hasattr(texts, "tolist") else str(texts))
    for name in ("tolist", "as_py", "to_list"):
        change = getattr(value, name, None)
        if callable(change) and not isinstance(value, type):
            return plain(change())
    raise TypeError(f"an object of type {type(value).__module__}.{type(value).__qualname__}")


def _dates(value: Any) -> Any:
    """Return texts of times with None for those that are none."""
    if isinstance(value, list):
        return [_dates(part) for part in value]
    return None if value == "NaT" else value
