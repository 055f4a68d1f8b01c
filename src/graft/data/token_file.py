"""Arrays of integers in a safetensors file, written and read without ever being in memory as a whole.

    8 bytes   length of the header, little-endian
    JSON      {NAME: {"dtype": "I32", "shape": [N], "data_offsets": [0, 4 N]}, ...}, filled up with blanks
    bytes     of the arrays, one after the other, the widest numbers first so that all are aligned

The library's own writer and reader take all tensors at once.
"""

import json
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graft.data.scratch import MOST, Numbers, Scratch

KINDS = {"q": "I64", "i": "I32", "B": "U8"}


def write(path: Path, arrays: Mapping[str, Numbers | array]) -> None:
    """Write arrays into a new file."""
    header: dict[str, Any] = {}
    ordered = sorted(arrays, key=lambda name: -array(_code(arrays[name])).itemsize)
    end = 0
    for name in ordered:
        begin, count = end, len(arrays[name])
        end += count * array(_code(arrays[name])).itemsize
        header[name] = {"dtype": KINDS[_code(arrays[name])], "shape": [count], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in ordered:
            values = arrays[name]
            for block in values.blocks() if isinstance(values, Numbers) else [values]:
                file.write(block)


def read(path: Path) -> dict[str, Numbers]:
    """Return the arrays of a file: in memory if all are small, else read from the file when they are used.

    Raises OSError, ValueError or KeyError for what is no such file.
    """
    codes = {kind: code for code, kind in KINDS.items()}
    file = Scratch(path)
    size = int.from_bytes(file.read(0, 8), "little")
    header = json.loads(file.read(8, min(size, file.size)))
    arrays = {}
    for name, entry in header.items():
        begin, _ = entry["data_offsets"]
        code, (count,) = codes[entry["dtype"]], entry["shape"]
        numbers = Numbers(code, file=file, begin=8 + size + begin, stored=count)
        arrays[name] = Numbers(code, numbers[:]) if file.size <= MOST else numbers
    return arrays


def _code(values: Numbers | array) -> str:
    return values.code if isinstance(values, Numbers) else values.typecode
