"""Files of any usual kind become records with `path:line`; what cannot be read becomes a reject, never nothing.

JSONL, JSON (an array, or {"data": [...]}), CSV and TSV with a header, Parquet, plain text, CoNLL; each of them also as
.gz; a folder or a list of these; the train split of a hub data set. Only blank lines between rows are passed over, and
the -DOCSTART- of CoNLL files.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any

from graft.data.rows import BadRow, Record, Reject
from graft.errors import DataError

KINDS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet",
    ".txt": "text", ".md": "text", ".conll": "conll",
}  # fmt: skip
DOCUMENT = 8192  # characters; paragraphs of a text file are gathered until a document has about as many
CSV_CELL = 1 << 27  # characters in one cell; the csv module's own limit, 131,072, is less than a chapter

TAGGED = re.compile(rb"\S.*[\t ](?:O|[BIESLU]-\S+)\s*")  # a line of a CoNLL file without that ending
_UTF8 = "save the file as UTF-8"


def sources(where: str | Path | Iterable[str | Path]) -> list[str]:
    """The files behind one path, a folder or a list of these, in reading order; hub names as `hub:owner/name`.

    A folder gives its readable files in the order of their names, README files and hidden ones left out.
    """
    if not isinstance(where, str | Path):
        return [found for one in where for found in sources(one)]
    path = Path(where)
    if str(where).startswith("hub:"):
        return [str(where)]
    if path.is_dir():
        found = [
            p
            for p in sorted(path.rglob("*"))
            if p.is_file() and kind_of(p) and not _hidden(p.relative_to(path))
        ]
        if not found:
            raise DataError(f"The folder {where} holds no file that can be read", f"files ending in {_endings()}",
                            "point data.train to the folder of the data files")  # fmt: skip
        return [str(p) for p in found]
    if path.exists():
        if not kind_of(path):
            raise DataError(f"{where} has an ending that is not known", f"a file ending in {_endings()}",
                            "convert it, for instance to JSON Lines: one object per line")  # fmt: skip
        return [str(where)]
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(where)) and not kind_of(path):
        return [f"hub:{where}"]
    raise DataError(f"There is no file or folder {where}", "a path that exists, or a hub name such as hub:owner/name",
                    "check the spelling; relative paths start at the current folder")  # fmt: skip


def kind_of(path: Path) -> str | None:
    """What the name says the file is: a value of KINDS, or None."""
    return KINDS.get(Path(path.stem if path.suffix == ".gz" else path.name).suffix.lower())


def records(where: str | Path | Iterable[str | Path], *, tagged: bool = False) -> Iterator[Record | Reject]:
    """Every row of every file, in order, as a Record or as a Reject that says why it is none.

    tagged: text files and TSV may be CoNLL files; their first line tells.
    Raises DataError where nothing can be read at all: a path that does not exist, a missing reader.
    """
    for name in sources(where):
        yield from _hub(name) if name.startswith("hub:") else _file(name, tagged)


def _file(name: str, tagged: bool) -> Iterator[Record | Reject]:
    path, last, kind = Path(name), f"{name}:0", kind_of(Path(name)) or ""
    read = {"jsonl": _json_lines, "json": _json, "csv": _csv, "tsv": _csv, "parquet": _parquet, "text": _text,
            "conll": _conll}  # fmt: skip
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as stream:
            if (
                tagged
                and kind in ("text", "tsv")
                and TAGGED.fullmatch(stream.peek(DOCUMENT).lstrip().split(b"\n")[0])
            ):
                kind = "conll"
            for record in read[kind](name, stream):  # type: ignore[operator]
                last = record.source
                yield record
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        yield Reject(
            last, "damaged archive", f"the .gz file breaks off after this row ({error})", "fetch it again"
        )
        return
    except OSError as error:
        raise DataError(f"{name} cannot be read ({error.strerror or error})", "a readable file",
                        "check its permissions") from error  # fmt: skip
    if last.endswith(":0"):
        yield Reject(f"{name}:1", "empty file", "the file has no row", "remove it from data.train or fill it")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for key in names if names.count(key) > 1)
        raise BadRow("bad JSON", f"the key {twice!r} stands twice", "keep one of the two")
    return fields


def _no_constant(name: str) -> Any:
    raise BadRow("bad JSON", f"{name} is not JSON", "write null, a number or a string")


_decode = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant).decode


def _parse(raw: bytes) -> Any:
    """The JSON value in these bytes; BadRow says what is wrong with them."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise BadRow("not UTF-8", "the file is UTF-16", _UTF8)
    if b"\0" in raw:
        raise BadRow(
            "NUL byte", f"a NUL at byte {raw.index(0)}", "remove it; the file may be damaged or UTF-16"
        )
    try:
        return _decode(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadRow("not UTF-8", f"byte 0x{raw[error.start]:02x} at position {error.start}", _UTF8) from None
    except RecursionError:
        raise BadRow("bad JSON", "nested too deeply", "flatten the row") from None
    except json.JSONDecodeError as error:
        raise BadRow(
            "bad JSON", f"{error.msg} at column {error.colno}", "one complete JSON object per row"
        ) from None
    except ValueError as error:  # a number of more digits than Python converts
        raise BadRow("bad JSON", str(error).split(";")[0], "write long numbers as strings") from None


def _record(source: str, fields: Any) -> Record | Reject:
    if isinstance(fields, dict):
        return Record(source, fields)
    found = {list: "a list", str: "a string", type(None): "null", bool: "true or false"}.get(
        type(fields), "a number"
    )
    return Reject(
        source, "not an object", f"the row is {found}", 'write it as an object, such as {"text": ...}'
    )


def _json_lines(name: str, stream: IO[bytes]) -> Iterator[Record | Reject]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            yield _record(f"{name}:{number}", _parse(line))
        except BadRow as bad:
            yield bad.at(f"{name}:{number}")
            if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
                return  # the rest of a UTF-16 file would be one reject per line for one and the same reason


def _json(name: str, stream: IO[bytes]) -> Iterator[Record | Reject]:
    raw = stream.read().removeprefix(b"\xef\xbb\xbf")
    if not raw.strip():
        return
    try:
        value = _parse(raw)
    except BadRow as bad:
        if raw.lstrip()[:1] == b"{" and "Extra data" in bad.args[1]:
            yield from _json_lines(name, io.BytesIO(raw))  # JSON Lines under another name
        else:
            yield bad.at(f"{name}:1")
        return
    if isinstance(value, dict):
        value = value["data"] if isinstance(value.get("data"), list) else [value]
    for number, fields in enumerate(value if isinstance(value, list) else [value], 1):
        yield _record(f"{name}:{number}", fields)


def _csv(name: str, stream: IO[bytes]) -> Iterator[Record | Reject]:
    # Bytes that are not UTF-8 travel as lone surrogates and are found with the row they stand in.
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    csv.field_size_limit(CSV_CELL)
    table = csv.reader(text, delimiter="\t" if kind_of(Path(name)) == "tsv" else ",", strict=True)
    head: list[str] = []
    while True:
        line = table.line_num + 1
        try:
            cells = next(table)
        except StopIteration:
            return
        except csv.Error as error:
            yield Reject(
                f"{name}:{line}", "bad CSV", str(error), "close every quote; double a quote inside a cell"
            )
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if not head:
            head = [cell.strip() for cell in cells]
            if (
                len(set(head)) != len(head)
                or "" in head
                or any("\udc80" <= c <= "\udcff" for c in "".join(head))
            ):
                yield Reject(
                    f"{name}:{line}", "bad header", f"columns {head}", "give every column its own UTF-8 name"
                )
                return
        elif len(cells) != len(head):
            detail = f"{len(cells)} cells, {len(head)} columns"
            yield Reject(
                f"{name}:{line}", "wrong number of cells", detail, "quote cells that contain the separator"
            )
        else:
            yield Record(f"{name}:{line}", dict(zip(head, cells, strict=True)))


def _parquet(name: str, stream: IO[bytes]) -> Iterator[Record | Reject]:
    try:
        import pyarrow  # an optional reader, and a slow one to import
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{name} is a Parquet file and pyarrow is not installed", "the reader for Parquet",
                        "pip install 'graftlm[parquet]'") from None  # fmt: skip
    number = 0
    try:
        table = pyarrow.parquet.ParquetFile(io.BytesIO(stream.read()) if name.endswith(".gz") else stream)
        for batch in table.iter_batches(batch_size=1024):
            for fields in batch.to_pylist():
                number += 1
                yield Record(f"{name}:{number}", fields)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        yield Reject(f"{name}:{number + 1}", "bad Parquet", str(error).split("\n")[0], "write the file again")


def _text(name: str, stream: IO[bytes]) -> Iterator[Record | Reject]:
    """Paragraphs gathered into documents of about DOCUMENT characters, each at the line where it begins."""
    begin, size, lines = 1, 0, list[str]()
    for number, raw in enumerate(stream, 1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            detail = (
                "the file is UTF-16"
                if raw.startswith((b"\xff\xfe", b"\xfe\xff"))
                else f"byte 0x{raw[error.start]:02x}"
            )
            yield Reject(f"{name}:{number}", "not UTF-8", detail, _UTF8)
            continue
        if not line.strip() and size >= DOCUMENT:
            yield Record(f"{name}:{begin}", {"text": "".join(lines).strip()})
            size, lines = 0, []
        if not lines:
            if not line.strip():
                continue
            begin = number
        lines.append(line)
        size += len(line)
    if lines:
        yield Record(f"{name}:{begin}", {"text": "".join(lines).strip()})


def _conll(name: str, stream: IO[bytes]) -> Iterator[Record | Reject]:
    """Sentences between blank lines; in each line the word comes first and its tag last."""
    lines: list[tuple[int, bytes]] = []
    for number, raw in enumerate(chain(stream, [b""]), 1):
        if raw.strip() and not raw.startswith(b"-DOCSTART-"):
            lines.append((number, raw))
        elif lines:
            yield _sentence(name, lines)
            lines = []


def _sentence(name: str, lines: list[tuple[int, bytes]]) -> Record | Reject:
    cells: list[list[str]] = []
    for number, raw in lines:
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip("\r\n ")
        except UnicodeDecodeError as error:
            return Reject(f"{name}:{number}", "not UTF-8", f"byte 0x{raw[error.start]:02x}", _UTF8)
        cells.append(line.split("\t") if "\t" in line else line.split())
        if len(cells[-1]) < 2 or not cells[-1][-1].strip():
            return Reject(
                f"{name}:{number}", "no tags", f"the line is {line[:40]!r}", "write the word, then its tag"
            )
        if len(cells[-1]) != len(cells[0]):
            detail = f"{len(cells[-1])} cells, {len(cells[0])} in line {lines[0][0]}"
            return Reject(
                f"{name}:{number}", "wrong number of cells", detail, "part words and tags by one tab"
            )
    return Record(
        f"{name}:{lines[0][0]}", {"tokens": [row[0] for row in cells], "tags": [row[-1] for row in cells]}
    )


def _hub(name: str) -> Iterator[Record | Reject]:
    try:
        import datasets  # an optional reader, and a slow one to import
    except ImportError:
        raise DataError(f"{name} is a hub name and datasets is not installed", "a file, or the reader for the hub",
                        "pip install 'graftlm[hub]', or download the file and give its path") from None  # fmt: skip
    owner, _, split = name.removeprefix("hub:").partition(":")
    try:
        rows = datasets.load_dataset(owner, split=split or "train")
    except Exception as error:  # the library raises many kinds, from the network up to the builder
        raise DataError(f"{name} cannot be loaded ({error})", "a public data set with this split",
                        "check the name, the split (hub:owner/name:split) and the network") from None  # fmt: skip
    for number, fields in enumerate(rows, 1):
        yield Record(f"{name}:{number}", dict(fields))


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts) or path.stem.lower() == "readme"


def _endings() -> str:
    return ", ".join(KINDS) + ", each also with .gz"
