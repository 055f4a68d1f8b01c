"""Read CSV, TSV and Parquet: one row a record, by the names of the columns."""

import csv
import io
from collections.abc import Iterator
from itertools import chain
from typing import IO, Any

from graft.data.layouts import LAYOUTS
from graft.data.read_json import SAVE_AS_UTF8
from graft.data.read_text import DOCUMENT
from graft.data.rows import Record, Reject
from graft.data.tool_calls import without_nulls
from graft.errors import DataError

CSV_CELL = 1 << 25  # characters in one cell; the csv module's own limit, 131,072, is less than a chapter
SEPARATORS = ",;\t|"
# By whether the file has quotes.
CELLS = {
    True: "quote cells that contain the separator",
    False: "keep tabs and new lines out of cells, or write a .csv file, which has quotes",
}


class Unquoted(csv.excel_tab):
    """Cells between tabs, as they stand."""

    quoting = csv.QUOTE_NONE


def csv_file(name: str, stream: IO[bytes]) -> Iterator[Record | Reject]:
    """Yield the rows of a file with a header; what separates its columns separates those of the rows."""
    text = _text(stream)
    first = next(text, "")
    bare = "".join(first.split('"')[::2])  # a separator inside quotes separates nothing
    separator = max(SEPARATORS, key=bare.count)
    return _rows(name, csv.reader(chain([first], text), delimiter=separator, strict=True))


def tsv_file(name: str, stream: IO[bytes]) -> Iterator[Record | Reject]:
    """Yield the rows of a tab-separated file with a header.

    Such files have no quotes: a quote is a character. Some programs write quotes all the same; see `_quotes`.
    """
    quoted = _quotes(stream)
    stream.seek(0)
    dialect = csv.excel_tab if quoted else Unquoted
    return _rows(name, csv.reader(_text(stream), dialect, strict=True))


def _quotes(stream: IO[bytes]) -> bool:
    """Return whether a tab-separated file has quotes: round its header, or rows are whole only with them."""
    first = next(stream, b"")
    if first.removeprefix(b"\xef\xbb\xbf").startswith(b'"'):
        return True
    if all(line.count(b"\t") == first.count(b"\t") for line in stream if line.strip()):
        return False
    stream.seek(0)
    text = _text(stream)
    try:
        table = csv.reader(text, delimiter="\t", strict=True)
        return len({len(cells) for cells in table if any(cells)}) == 1
    except csv.Error:
        return False
    finally:
        text.detach()  # or the stream would be closed with it


def is_table(begin: bytes) -> bool:
    """Return whether a text file begins as a table: a header of known columns with tabs, lines to match."""
    lines = begin.decode("utf-8-sig", errors="replace").split("\n")
    broken = len(begin) >= DOCUMENT  # off at its last line
    whole = [line for line in (lines[:-1] if broken else lines) if line.strip()][:20]
    header = frozenset(whole[0].strip().split("\t")) if whole else frozenset[str]()
    alike = {line.count("\t") for line in whole}
    known = any(layout.columns(header) for layout in LAYOUTS.values())
    return len(header) > 1 and len(whole) > 1 and len(alike) == 1 and known


def _text(stream: IO[bytes]) -> io.TextIOWrapper:
    # Bytes that are not UTF-8 travel as lone surrogates; they are found in the row in which they stand.
    csv.field_size_limit(CSV_CELL)
    return io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _rows(name: str, table: Any) -> Iterator[Record | Reject]:
    """Yield the rows of a table with a header.  table: a reader of the csv module."""
    header: list[str] = []
    quoted = table.dialect.quoting != csv.QUOTE_NONE
    while True:
        source = f"{name}:{table.line_num + 1}"
        try:
            cells = next(table)
        except StopIteration:
            return
        except csv.Error as error:
            detail = f"{error}{_reach(source, table.line_num)}"
            yield Reject(source, "bad CSV", detail, "close every quote; double a quote inside a cell")
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if "\0" in (joined := "".join(cells)):
            detail = "a NUL: the file may be damaged, or UTF-16 without its mark"
            yield Reject(source, "NUL byte", detail, SAVE_AS_UTF8)
            if not header:
                return
        elif (byte := _foreign(joined)) is not None:
            yield Reject(source, "not UTF-8", f"byte 0x{byte:02x}", SAVE_AS_UTF8)
            if not header:
                return
        elif not header:
            header = _names(cells)
            if len(set(header)) != len(header) or not any(header):
                yield Reject(source, "bad header", f"columns {header}", "give every column a name of its own")
                return
        elif len(cells) != len(header):
            detail = f"{len(cells)} cells, {len(header)} columns{_reach(source, table.line_num)}"
            yield Reject(source, "wrong number of cells", detail, CELLS[quoted])
        else:
            values = cells if quoted else map(_unquoted, cells)
            yield Record(source, dict(zip(header, values, strict=True)))


def _reach(source: str, line: int) -> str:
    """Return to which line a row reaches that a quote has made longer; nothing for a row of one line."""
    begin = int(source.rpartition(":")[2])
    return (
        f"; a quote makes it reach to line {line:,}, {line - begin + 1:,} lines in all"
        if line > begin
        else ""
    )


def _names(cells: list[str]) -> list[str]:
    """Return the names of columns; the first may have none (the row numbers of pandas), others get one."""
    names = [cell.strip() for cell in cells]
    return [name or (f"column {k}" if k > 1 else "") for k, name in enumerate(names, 1)]


def _unquoted(cell: str) -> str:
    """Return a cell without the quotes that some programs write around a cell with quotes in it.

    >>> print(_unquoted('"He said ""no"" to me"'))
    He said "no" to me
    >>> print(_unquoted('"I am here .'))
    "I am here .
    """
    inner = cell[1:-1]
    if len(cell) < 2 or not cell[0] == cell[-1] == '"' or '"' not in inner or '"' in inner.replace('""', ""):
        return cell
    return inner.replace('""', '"')


def _foreign(text: str) -> int | None:
    """Return the first byte that was not UTF-8; None if all were."""
    if text.isascii():
        return None
    return next((ord(c) - 0xDC00 for c in text if "\udc80" <= c <= "\udcff"), None)


def parquet_file(name: str, stream: IO[bytes]) -> Iterator[Record | Reject]:
    """Yield the rows of a Parquet file."""
    try:
        import pyarrow  # an optional reader, and a slow one to import
        import pyarrow.parquet
    except ImportError:
        raise DataError(
            f"{name} is a Parquet file and pyarrow is not installed",
            "the reader for Parquet",
            "pip install 'graftlm[parquet]'",
        ) from None
    number = 0
    try:
        table = pyarrow.parquet.ParquetFile(io.BytesIO(stream.read()) if name.endswith(".gz") else stream)
        for batch in table.iter_batches(batch_size=1024):
            for fields in batch.to_pylist():
                number += 1
                # Every object of a column has the keys of all others: null where its row had none.
                row = {key: without_nulls(value) for key, value in fields.items()}
                yield Record(f"{name}:{number}", row)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        detail = str(error).split("\n")[0]
        yield Reject(f"{name}:{number + 1}", "bad Parquet", detail, "write the file again")
