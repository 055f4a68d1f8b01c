"""Read JSON and JSON Lines, strictly: no key twice, no NaN, UTF-8 only."""

import io
import json
import re
from collections.abc import Iterator
from typing import IO, Any

from graft.data.rows import DEPTH, BadRow, Record, Reject, require_shallow
from graft.sizes import size

SAVE_AS_UTF8 = "save the file as UTF-8; it may be in Windows-1252 (Latin-1) now"
# The first line of a file whose values take several lines each, or that is one array of objects.
WIDE = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:[{\[]|\[\s*\{.*)\s*", re.DOTALL)
ROW = 1 << 25  # bytes of one row: 32 MiB
_KINDS = {list: "a list", str: "a string", type(None): "null", bool: "true or false"}


def json_lines(name: str, stream: IO[bytes]) -> Iterator[Record | Reject]:
    """Yield the object of every line that is not blank.

    A file that begins with an object over several lines, or with an array, is read as what it is.
    """
    begun = False
    for number, line in enumerate(iter(lambda: stream.readline(ROW + 1), b""), 1):
        if len(line) > ROW:
            while line and not line.endswith(b"\n"):
                line = stream.readline(ROW)
            detail = f"it has more than {size(ROW)}"
            yield Reject(f"{name}:{number}", "row too long", detail, "split the row")
            begun = True
            continue
        if not line.strip():
            continue
        if not begun and WIDE.fullmatch(line):
            yield from _written_wide(name, line + stream.read(), number)
            return
        begun = True
        try:
            yield _record(f"{name}:{number}", _parse(line))
        except BadRow as bad:
            yield bad.at(f"{name}:{number}")


def _written_wide(name: str, raw: bytes, line: int) -> Iterator[Record | Reject]:
    """Yield the objects of JSON values that stand one after the other, or of one array.

    line: where they begin. What cannot be read ends the file with one reject.
    """
    values: list[tuple[int, Any]] = []
    at, begin, failed = 0, line, None
    try:
        text = _text(raw)
        while (start := _end_of_blanks(text, at)) < len(text):
            line += text.count("\n", at, start)
            value, at = _decoder.raw_decode(text, start)
            require_shallow(value)
            values.append((line, value))
            line += text.count("\n", start, at)
    except json.JSONDecodeError as error:
        failed = begin + error.lineno - 1, "bad JSON", error.msg
    except BadRow as bad:
        failed = line, *bad.args[:2]
    except (ValueError, RecursionError) as error:
        failed = line, "bad JSON", str(error).split(";")[0]
    if len(values) == 1 and isinstance(rows := _rows_in(values[0][1]), list):
        values = list(enumerate(rows, 1))
    for number, fields in values:
        yield _record(f"{name}:{number}", fields)
    if failed:
        remedy = "write one complete JSON object per line, or one array of objects"
        yield Reject(f"{name}:{failed[0]}", failed[1], f"{failed[2]}; nothing after it is read", remedy)


def _end_of_blanks(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def json_file(name: str, stream: IO[bytes]) -> Iterator[Record | Reject]:
    """Yield the objects of an array, of {"data": [...]}, or of JSON Lines in a file named .json."""
    raw = stream.read().removeprefix(b"\xef\xbb\xbf")
    if not raw.strip():
        return
    try:
        value = _parse(raw)
    except BadRow as bad:
        if raw.lstrip()[:1] == b"{" and "Extra data" in bad.args[1]:
            yield from json_lines(name, io.BytesIO(raw))
        else:
            yield bad.at(f"{name}:1")
        return
    rows = _rows_in(value)
    for number, fields in enumerate(rows if isinstance(rows, list) else [rows], 1):
        yield _record(f"{name}:{number}", fields)


def _rows_in(value: Any) -> Any:
    """Return the list of rows in {"data": [...]}; any other value as it is."""
    rows = value.get("data") if isinstance(value, dict) else None
    return rows if isinstance(rows, list) else value


def _record(source: str, fields: Any) -> Record | Reject:
    if isinstance(fields, dict):
        return Record(source, fields)
    detail = f"the row is {_KINDS.get(type(fields), 'a number')}"
    return Reject(source, "not an object", detail, 'write it as an object, such as {"text": ...}')


def _parse(raw: bytes) -> Any:
    """Return the JSON value of these bytes. Raises BadRow."""
    text = _text(raw)
    try:
        value = _decoder.decode(text)
        if raw.count(b"[") + raw.count(b"{") > DEPTH:
            require_shallow(value)
        return value
    except RecursionError:
        raise BadRow("bad JSON", "nested too deeply", "flatten the row") from None
    except json.JSONDecodeError as error:
        detail = f"{error.msg} at column {error.colno}"
        raise BadRow("bad JSON", detail, "write one complete JSON object per row") from None
    except ValueError as error:  # a number of more digits than Python converts
        raise BadRow("bad JSON", str(error).split(";")[0], "write long numbers as strings") from None


def _text(raw: bytes) -> str:
    """Return bytes as text. Raises BadRow."""
    if b"\0" in raw:
        detail = f"a NUL at byte {raw.index(0)}"
        raise BadRow("NUL byte", detail, "remove it; the file may be damaged or UTF-16")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        detail = f"byte 0x{raw[error.start]:02x} at position {error.start}"
        raise BadRow("not UTF-8", detail, SAVE_AS_UTF8) from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the dict of these pairs. Raises BadRow for a key that occurs twice."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [key for key, _ in pairs]
        repeated = next(key for key in names if names.count(key) > 1)
        raise BadRow("bad JSON", f"the key {repeated!r} occurs twice", "keep one of the two")
    return fields


def _no_constant(name: str) -> Any:
    raise BadRow("bad JSON", f"{name} is not JSON", "write null, a number or a string")


_decoder = json.JSONDecoder(object_pairs_hook=_without_repeats, parse_constant=_no_constant)
