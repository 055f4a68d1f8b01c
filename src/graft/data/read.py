"""Files of every usual kind become records with `file:line`. A row that cannot be read becomes a reject.

JSONL, JSON (an array, or {"data": [...]}), CSV and TSV with a header, Parquet, plain text, CoNLL; each of
them also as .gz; a folder or a list of these; the train split of a hub data set. Only blank lines between
rows are passed over, and the -DOCSTART- of CoNLL files.
"""

import gzip
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from graft.data.read_json import json_file, json_lines
from graft.data.read_tables import csv_file, parquet_file, tsv_file
from graft.data.read_text import DOCUMENT, TAGGED_LINE, conll_file, text_file
from graft.data.rows import Record, Reject
from graft.errors import DataError

KINDS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".txt": "text",
    ".md": "text",
    ".conll": "conll",
}
READERS: dict[str, Callable[[str, IO[bytes]], Iterator[Record | Reject]]] = {
    "jsonl": json_lines,
    "json": json_file,
    "csv": csv_file,
    "tsv": tsv_file,
    "parquet": parquet_file,
    "text": text_file,
    "conll": conll_file,
}


def sources(where: str | Path | Iterable[str | Path]) -> list[str]:
    """Return the files of one path, of a folder or of a list of these, in reading order.

    A folder gives its readable files in the order of their names, without README files and hidden ones. Names
    of hub data sets are returned as `hub:owner/name`. Raises DataError for a path without any file that can
    be read.
    """
    if not isinstance(where, str | Path):
        return [source for entry in where for source in sources(entry)]
    path = Path(where)
    if str(where).startswith("hub:"):
        return [str(where)]
    if path.is_dir():
        return _files_of_folder(path, where)
    if path.exists():
        if not kind_of(path):
            raise DataError(
                f"{where} has an unknown ending",
                f"a file ending in {_endings()}",
                "convert it, for instance to JSON Lines: one object per line",
            )
        return [str(where)]
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(where)) and not kind_of(path):
        return [f"hub:{where}"]
    raise DataError(
        f"There is no file or folder {where}",
        "a path that exists, or a hub name such as hub:owner/name",
        "check the spelling; relative paths start at the current folder",
    )


def kind_of(path: Path) -> str | None:
    """Return the kind of file that the name promises, a value of KINDS; None for an unknown ending."""
    return KINDS.get(Path(path.stem if path.suffix == ".gz" else path.name).suffix.lower())


def records(where: str | Path | Iterable[str | Path], *, tagged: bool = False) -> Iterator[Record | Reject]:
    """Yield every row of every file, in order, as a Record, or as a Reject that says why it is none.

    tagged: text files and TSV may be CoNLL files; their first line decides.
    Raises DataError if nothing can be read at all: a path does not exist, a reader is not installed.
    """
    for name in sources(where):
        yield from _hub_rows(name) if name.startswith("hub:") else _rows_of_file(name, tagged)


def _files_of_folder(folder: Path, given: str | Path) -> list[str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and kind_of(path)]
    shown = [str(path) for path in files if not _hidden(path.relative_to(folder))]
    if not shown:
        raise DataError(
            f"The folder {given} holds no file that can be read",
            f"files ending in {_endings()}",
            "point data.train to the folder of the data files",
        )
    return shown


def _rows_of_file(name: str, tagged: bool) -> Iterator[Record | Reject]:
    path = Path(name)
    kind = kind_of(path) or ""
    last = f"{name}:0"  # the last row that could be read
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as stream:
            # A GzipFile has all that the readers need of a stream, but is declared as none.
            readable: Any = stream
            if tagged and kind in ("text", "tsv") and _begins_with_tags(readable):
                kind = "conll"
            for record in READERS[kind](name, readable):
                last = record.source
                yield record
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        detail = f"the .gz file breaks off after this row ({error})"
        yield Reject(last, "damaged archive", detail, "fetch it again")
        return
    except OSError as error:
        reason = error.strerror or error
        raise DataError(
            f"{name} cannot be read ({reason})", "a readable file", "check its permissions"
        ) from error
    if last.endswith(":0"):
        yield Reject(f"{name}:1", "empty file", "the file has no row", "remove it from data.train or fill it")


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
        yield Record(f"{name}:{number}", dict(fields))


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts) or path.stem.lower() == "readme"


def _endings() -> str:
    return ", ".join(KINDS) + ", each also with .gz"
