"""The header of a safetensors file, read before its tensors: how many there are, of which types and shapes.

    8 bytes   length of the header, little-endian
    JSON      {"__metadata__": {}, NAME: {"dtype": "F32", "shape": [8, 64], "data_offsets": [0, 2048]}}

The library itself checks that the tensors fill the file. It reads what no adapter holds as willingly as what
it does, and takes its time over a hundred thousand empty tensors.
"""

import json
from pathlib import Path

from graft.errors import AdapterError, listed

FLOATS = ("F32", "F16", "BF16", "F64")
INTEGERS = ("I32", "I64")  # places and phases of sparse differences
DEEPEST = 8  # dimensions of a tensor
LONGEST = 512  # letters of a name; the patterns that names are read by are slow on long ones
ENTRY_BYTES = 1024  # of the header, for each tensor
FACTS_BYTES = 2**20  # of the header, for what is no tensor


def check(path: Path, most: int, of: str) -> None:
    """Raise AdapterError for a file with more than `most` tensors, or with tensors that no adapter has.

    of: says where the number comes from.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(path.stat().st_size - 8, FACTS_BYTES + most * ENTRY_BYTES):
            raise _damaged(path, f"a header of {length:,} bytes")
        raw = file.read(length)
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise _damaged(path, "its header lists no tensors")
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    if len(tensors) > most:
        raise AdapterError(
            f"{path} holds {len(tensors):,} tensors",
            f"at most {most:,}: {of}",
            "load the base that it was trained on; a file of another base is damaged or hostile",
        )
    odd = [f"{name:.80} ({text})" for name, entry in tensors.items() if (text := _odd(name, entry))]
    if odd:
        raise AdapterError(
            f"{path} holds {listed(odd, 3)}",
            f"tensors of up to {DEEPEST} dimensions in {', '.join(FLOATS)}",
            "ask its author for the adapter in 16 or 32 bits",
        )


def _odd(name: str, entry: object) -> str:
    """Return what is odd about one tensor, or ""."""
    if len(name) > LONGEST:
        return f"a name of {len(name):,} letters"
    if not isinstance(entry, dict) or not isinstance(entry.get("shape"), list):
        return "no tensor"
    if len(entry["shape"]) > DEEPEST:
        return f"{len(entry['shape'])} dimensions"
    kind = entry.get("dtype")
    return "" if kind in (*FLOATS, *INTEGERS) else str(kind)[:20]


def _damaged(path: Path, why: str) -> AdapterError:
    return AdapterError(
        f"{path} is damaged ({why})", "a safetensors file", "copy it again from where it came"
    )
