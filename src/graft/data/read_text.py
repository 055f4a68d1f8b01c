"""Read plain text, and CoNLL files of words with tags."""

import re
from collections.abc import Iterator
from itertools import chain
from typing import IO

from graft.data.read_json import SAVE_AS_UTF8
from graft.data.rows import Record, Reject

DOCUMENT = 8192  # characters; paragraphs of a text file are gathered until a document has about as many
TAGGED_LINE = re.compile(rb"\S.*[\t ](?:O|[BIESLU]-\S+)\s*")  # the first line of a CoNLL file


def text_file(name: str, stream: IO[bytes]) -> Iterator[Record | Reject]:
    """Yield documents of about DOCUMENT characters, made of whole paragraphs, each at its first line."""
    begin, size = 1, 0
    lines: list[str] = []
    for number, raw in enumerate(stream, 1):
        try:
            line = _decoded(raw, number)
        except UnicodeDecodeError as error:
            yield Reject(f"{name}:{number}", "not UTF-8", f"byte 0x{raw[error.start]:02x}", SAVE_AS_UTF8)
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


def conll_file(name: str, stream: IO[bytes]) -> Iterator[Record | Reject]:
    """Yield the sentences between blank lines; in each line the word comes first and its tag last.

    Columns between the two are called by their number.
    """
    lines: list[tuple[int, bytes]] = []
    for number, raw in enumerate(chain(stream, [b""]), 1):
        if raw.strip() and not raw.startswith(b"-DOCSTART-"):
            lines.append((number, raw))
        elif lines:
            yield _sentence(name, lines)
            lines = []


def _sentence(name: str, lines: list[tuple[int, bytes]]) -> Record | Reject:
    rows: list[list[str]] = []
    for number, raw in lines:
        source = f"{name}:{number}"
        try:
            line = _decoded(raw, number).strip("\r\n ")
        except UnicodeDecodeError as error:
            return Reject(source, "not UTF-8", f"byte 0x{raw[error.start]:02x}", SAVE_AS_UTF8)
        cells = line.split("\t") if "\t" in line else line.split()
        rows.append(cells)
        if len(cells) < 2 or not cells[-1].strip():
            return Reject(source, "no tags", f"the line is {line[:40]!r}", "write the word, then its tag")
        if len(cells) != len(rows[0]):
            detail = f"{len(cells)} cells, {len(rows[0])} in line {lines[0][0]}"
            return Reject(source, "wrong number of cells", detail, "separate words and tags by one tab")
    fields = {"tokens": [cells[0] for cells in rows], "tags": [cells[-1] for cells in rows]}
    between = {str(k + 1): [cells[k] for cells in rows] for k in range(1, len(rows[0]) - 1)}
    return Record(f"{name}:{lines[0][0]}", fields | between)


def _decoded(raw: bytes, number: int) -> str:
    """Return a line as text; the first may begin with a byte order mark."""
    return raw.decode("utf-8-sig" if number == 1 else "utf-8")
