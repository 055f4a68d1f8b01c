"""Read CSV, TSV and Parquet: one row a record, by the names of the columns."""

import csv
import io
from collections.abc import Iterator
from typing import IO

from graft.data.rows import Record, Reject
from graft.errors import DataError

CSV_CELL = 1 << 27  # characters in one cell; the csv module's own limit, 131,072, is less than a chapter


def csv_file(name: str, stream: IO[bytes]) -> Iterator[Record | Reject]:
    """Yield the rows of a comma-separated file with a header."""
    return _separated(name, stream, ",")


def tsv_file(name: str, stream: IO[bytes]) -> Iterator[Record | Reject]:
    """Yield the rows of a tab-separated file with a header."""
    return _separated(name, stream, "\t")


def _separated(name: str, stream: IO[bytes], separator: str) -> Iterator[Record | Reject]:
    # Bytes that are not UTF-8 travel as lone surrogates; they are found in the row in which they stand.
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    csv.field_size_limit(CSV_CELL)
    table = csv.reader(text, delimiter=separator, strict=True)
    header: list[str] = []
    while True:
        source = f"{name}:{table.line_num + 1}"
        try:
            cells = next(table)
        except StopIteration:
            return
        except csv.Error as error:
            yield Reject(source, "bad CSV", str(error), "close every quote; double a quote inside a cell")
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if not header:
            header = [cell.strip() for cell in cells]
            if not _names_columns(header):
                yield Reject(
                    source, "bad header", f"columns {header}", "give every column its own UTF-8 name"
                )
                return
        elif len(cells) != len(header):
            detail = f"{len(cells)} cells, {len(header)} columns"
            yield Reject(source, "wrong number of cells", detail, "quote cells that contain the separator")
        else:
            yield Record(source, dict(zip(header, cells, strict=True)))


def _names_columns(header: list[str]) -> bool:
    """Return whether every column has a name of its own, in UTF-8."""
    distinct = len(set(header)) == len(header)
    return distinct and "" not in header and not any("\udc80" <= c <= "\udcff" for c in "".join(header))


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
                yield Record(f"{name}:{number}", fields)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        detail = str(error).split("\n")[0]
        yield Reject(f"{name}:{number + 1}", "bad Parquet", detail, "write the file again")
