"""Damage files of rows in one of many ways, by a number: the same number does the same damage."""

import copy
import csv
import gzip
import io
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from graft.data import load_rows
from graft.data.rows import Reject, Row

ROWS: tuple[dict[str, Any], ...] = (
    {"prompt": "What is two and two?", "completion": "four"},
    {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
    {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls": [
        {"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]}],
     "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]},
    {"instruction": "Add", "input": "2 2", "output": "4"},
    {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]},
    {"text": "A day at the sea."},
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 10**40, 1e308, "", " ", "x" * 10_000, "\0", "\ud800", "\u2028", "</s>", [], {}, [[]],
    [None], {"a": None}, [1, "a"], "[" * 3000, "{}", "null",
)  # fmt: skip
ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".jsonl.gz", ".csv.gz", ".json.gz")


def damaged(folder: Path, number: int) -> Path:
    """Write a file of a few rows with damage of one kind or several; return its path."""
    chance = random.Random(number)
    rows = [json.loads(json.dumps(chance.choice(ROWS))) for _ in range(chance.randint(1, 5))]
    for _ in range(chance.randint(0, 3)):
        _strange(chance.choice(rows), chance)
    ending = chance.choice(ENDINGS)
    raw = bytearray(_written(rows, ending, chance))
    for _ in range(chance.choice((0, 0, 1, 1, 2, 5))):
        _spoil(raw, chance)
    file = folder / f"rows{ending}"
    file.write_bytes(raw)
    return file


def outcome(file: Path, settings: Any, stage: Any) -> tuple[list[Row], list[Reject]]:
    """Return what becomes of a file.  settings: as `data:` of a recipe with bad_rows skip."""
    settings.train = str(file)
    loaded = load_rows(settings, stage)
    return loaded.train, list(loaded.rejects)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (dict or list, key) of every value in a row, however deep."""
    for key, part in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(part, dict | list):
            yield from _places(part)


def _strange(row: Any, chance: random.Random) -> None:
    """Change one value, add a key, take one out, or nest a value."""
    places = list(_places(row))
    if not places:
        return
    holder, key = chance.choice(places)
    way = chance.choice(("value", "gone", "key", "deep"))
    if way == "value":
        holder[key] = copy.deepcopy(chance.choice(VALUES))
    elif way == "gone":
        del holder[key]
    elif way == "key" and isinstance(holder, dict):
        holder[chance.choice(("x", "", "role", "content", "tools", "weight", "y" * 300))] = chance.choice(
            VALUES
        )
    else:
        for _ in range(chance.choice((3, 120))):
            holder[key] = [holder[key]]


def _written(rows: list[dict[str, Any]], ending: str, chance: random.Random) -> bytes:
    kind = ending.removesuffix(".gz")
    if kind in (".csv", ".tsv"):
        stream = io.StringIO()
        columns = list(dict.fromkeys(key for row in rows for key in row))
        writer = csv.writer(stream, delimiter="\t" if kind == ".tsv" else ",")
        writer.writerow(columns)
        writer.writerows([str(row.get(column, "")) for column in columns] for row in rows)
        text = stream.getvalue()
    elif kind == ".json":
        text = json.dumps(rows if chance.random() < 0.7 else {"data": rows}, indent=chance.choice((None, 1)))
    elif kind == ".txt":
        text = "\n\n".join(str(row) for row in rows)
    else:
        text = "".join(json.dumps(row, ensure_ascii=chance.random() < 0.5) + "\n" for row in rows)
    encoding = chance.choice(("utf-8",) * 6 + ("utf-8-sig", "utf-16", "latin-1"))
    raw = text.encode(encoding, "replace" if encoding == "latin-1" else "surrogatepass")
    return gzip.compress(raw, 1) if ending.endswith(".gz") else raw


def _spoil(raw: bytearray, chance: random.Random) -> None:
    """Flip a bit, cut, repeat, put in or take out bytes."""
    at = chance.randrange(len(raw) + 1)
    way = chance.choice(("flip", "cut", "repeat", "put", "take"))
    if way == "flip" and raw:
        raw[at - 1] ^= 1 << chance.randrange(8)
    elif way == "cut":
        del raw[at:]
    elif way == "repeat":
        raw[at:at] = raw[at : at + 40]
    elif way == "put":
        raw[at:at] = chance.choice(
            (b'"', b"\n", b"\0", b"\xff\xfe", b"{", b"]", b"\\", b",", b"\r", b"[" * 5000)
        )
    else:
        del raw[at : at + chance.randint(1, 30)]
