"""Files of every usual kind become records with `file:line`. A row that cannot be read becomes a reject.

JSONL, JSON (an array, or {"data": [...]}), CSV and TSV with a header, Parquet, plain text, CoNLL; each of
them also as .gz, and in UTF-16 if it begins with its mark; a folder (see `folders`) or a list of these; the
train split of a hub data set. Only blank lines between rows are passed over, and the -DOCSTART- of CoNLL
files.
"""

import gzip
import io
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from graft.data import kept_rows
from graft.data.folders import HUB_NAME, endings, files_in, kind_of, told, validation_in
from graft.data.read_json import SAVE_AS_UTF8, json_file, json_lines
from graft.data.read_tables import csv_file, is_table, parquet_file, tsv_file
from graft.data.read_text import DOCUMENT, TAGGED_LINE, conll_file, text_file
from graft.data.rows import Record, Reject
from graft.data.tool_calls import without_nulls
from graft.data.unpack import unpacked
from graft.errors import DataError

READERS: dict[str, Callable[[str, IO[bytes]], Iterator[Record | Reject]]] = {
    "jsonl": json_lines,
    "json": json_file,
    "csv": csv_file,
    "tsv": tsv_file,
    "parquet": parquet_file,
    "text": text_file,
    "conll": conll_file,
}


UTF16 = (b"\xff\xfe", b"\xfe\xff")  # how UTF-16 files begin
Where = str | Path | Iterable[str | Path]


def sources(where: Where, split: str = "train") -> list[str]:
    """Return the files of one path, of a folder or of a list of these, in reading order.

    split: "train", "validation" or "test", for folders whose files' names tell them apart. Names of hub data
    sets are returned as `hub:owner/name`. Raises DataError for a path without any file that can be read.
    """
    if not isinstance(where, str | Path):
        return [source for entry in where for source in sources(entry, split)]
    path = Path(where)
    if str(where).startswith("hub:"):
        return [str(where)]
    if path.is_dir():
        return [str(file) for file in files_in(path, split)]
    if path.exists():
        if not kind_of(path):
            raise DataError(
                f"{where} has an unknown ending",
                f"a file ending in {endings()}",
                "convert it, for instance to JSON Lines: one object per line",
            )
        return [str(where)]
    if HUB_NAME.fullmatch(str(where)) and not kind_of(path):
        return [f"hub:{where}"]
    raise DataError(
        f"There is no file or folder {where}",
        "a path that exists, or a hub name such as hub:owner/name",
        "check the spelling; relative paths start at the current folder",
    )


def validation(where: Where) -> list[str]:
    """Return the files in folders of `where` that are held out by their names."""
    return [str(file) for folder in _folders(where) for file in validation_in(folder)]


def choices(where: Where, used: Iterable[str]) -> list[str]:
    """Return which rows were in memory, and what of the folders in `where` was taken, a sentence each.

    used: every file that is read.
    """
    known = list(used)
    held = [name for name in validation(where) if name in known]
    return kept_rows.told(known) + told(_folders(where), held, known)


def records(where: Where, *, tagged: bool = False, split: str = "train") -> Iterator[Record | Reject]:
    """Yield every row of every file, in order, as a Record, or as a Reject that says why it is none.

    tagged: text files and TSV may be CoNLL files; their first line decides.  split: see `sources`.
    Raises DataError if nothing can be read at all: a path does not exist, a reader is not installed.
    """
    for name in sources(where, split):
        if name.startswith("hub:"):
            yield from _hub_rows(name)
        else:
            yield from kept_rows.called(Path(name), _rows_of_file(name, tagged))


def _folders(where: Where) -> list[Path]:
    given = [where] if isinstance(where, str | Path) else where
    return [Path(entry) for entry in given if Path(entry).is_dir()]


def _rows_of_file(name: str, tagged: bool) -> Iterator[Record | Reject]:
    path = Path(name)
    kind = kind_of(path) or ""
    last = f"{name}:0"  # the last row that could be read
    try:
        with unpacked(path) if path.suffix == ".gz" else open(path, "rb") as stream:
            readable: Any = stream
            if kind != "parquet" and readable.peek(2)[:2] in UTF16:
                readable = io.BufferedReader(io.BytesIO(_as_utf8(readable.read())))
            if tagged and kind in ("text", "tsv") and _begins_with_tags(readable):
                kind = "conll"
            if kind == "text" and is_table(readable.peek(DOCUMENT)):
                kind = "tsv"
            for record in READERS[kind](name, readable):
                last = record.source
                yield record
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        detail = f"the .gz file breaks off after this row ({error})"
        yield Reject(last, "damaged archive", detail, "fetch it again")
        return
    except UnicodeDecodeError as error:
        detail = f"the file is UTF-16 and damaged at byte {error.start}"
        yield Reject(f"{name}:1", "not UTF-8", detail, SAVE_AS_UTF8)
        return
    except OSError as error:
        reason = error.strerror or error
        raise DataError(
            f"{name} cannot be read ({reason})", "a readable file", "check its permissions"
        ) from error
    if last.endswith(":0"):
        yield Reject(f"{name}:1", "empty file", "the file has no row", "remove it from data.train or fill it")


def _as_utf8(raw: bytes) -> bytes:
    """Return the UTF-8 bytes of a file in UTF-16. Raises UnicodeDecodeError."""
    return raw.decode("utf-16").encode()


def _begins_with_tags(stream: Any) -> bool:
    """Return whether the first line is a word with a tag; the stream stays where it is."""
    first_line = stream.peek(DOCUMENT).lstrip().split(b"\n")[0]
    return TAGGED_LINE.fullmatch(first_line) is not None


def _hub_rows(name: str) -> Iterator[Record | Reject]:
    try:
        import datasets  # an optional reader, and a slow one to import
    except ImportError:
        raise DataError(
            f"{name} is a hub name and datasets is not installed",
            "a file, or the reader for the hub",
            "pip install 'graftlm[hub]', or download the file and give its path",
        ) from None
    owner, _, split = name.removeprefix("hub:").partition(":")
    try:
        rows = datasets.load_dataset(owner, split=split or "train")
    except Exception as error:  # the library raises many kinds, from the network up to the builder
        raise DataError(
            f"{name} cannot be loaded ({error})",
            "a public data set with this split",
            "check the name, the split (hub:owner/name:split) and the network",
        ) from None
    for number, fields in enumerate(rows, 1):
        yield Record(f"{name}:{number}", {key: without_nulls(value) for key, value in fields.items()})
