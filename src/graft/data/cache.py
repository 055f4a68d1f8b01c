"""Keep encoded data on disk by the hash of everything they depend on. The cache may be deleted at any time.

    key = SHA-256 of: this format, the settings, every file's bytes, the tokenizer, the template

An entry is a folder with tokens.safetensors and data.json, which holds the SHA-256 of the first and of
itself. It is written next to its final place and renamed into it, so it is complete or absent. An entry that
cannot be read, or was changed, counts as absent; a cache that cannot be written is no error.
"""

import contextlib
import hashlib
import json
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from graft import storage
from graft.data.encode import Column, Examples

VERSION = 6  # raise when encoding or the form of entries changes
TOKENS, CONTENTS = "tokens.safetensors", "data.json"


def folder() -> Path:
    """Return the folder of all entries."""
    return storage.cache_folder("data")


def key(files: Iterable[str], tokenizer: Any, settings: Any) -> str | None:
    """Return the name of the entry; None for hub data sets, which have no bytes to hash."""
    digest = hashlib.sha256(json.dumps([VERSION, settings], sort_keys=True, default=str).encode())
    for name in files:
        if name.startswith("hub:"):
            return None
        with open(name, "rb") as stream:
            digest.update(f"\0{name}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}".encode())
    digest.update(_tokenizer(tokenizer).encode())
    return digest.hexdigest()[:40]


def _tokenizer(tokenizer: Any) -> str:
    """Return as text everything that decides which ids this tokenizer writes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    extra = [type(tokenizer).__name__, tokenizer.special_tokens_map, tokenizer.chat_template]
    return rules + json.dumps(extra, sort_keys=True, default=str)


def load(name: str) -> tuple[dict[str, Examples], dict[str, Any]] | None:
    """Return the examples of each split and the facts stored with them; None without a sound entry."""
    try:
        body = storage.unseal((folder() / name / CONTENTS).read_bytes())
        contents = json.loads(body or b"{}")
        if contents["key"] != name or contents["tokens"] != storage.digest(folder() / name / TOKENS):
            return None
        tensors = load_file(folder() / name / TOKENS)
        splits = {split: _examples(tensors, split, lists) for split, lists in contents["splits"].items()}
        return splits, contents["facts"]
    except (OSError, ValueError, KeyError, SafetensorError):
        return None


def _examples(tensors: dict[str, Any], split: str, lists: dict[str, list[str]]) -> Examples:
    """Build the examples of a split from its tensors and from its lists of sources and parts."""

    def column(field: str) -> Column:
        return Column(
            _array("i", tensors[f"{split}.{field}"]),
            _array("q", tensors[f"{split}.{field}.ends"]),
        )

    return Examples(
        ids=column("ids"),
        learnt=bytearray(tensors[f"{split}.learnt"]),
        targets=_array("i", tensors[f"{split}.targets"]),
        parts={part: column(f"parts.{part}") for part in lists["parts"]},
        sources=lists["sources"],
    )


def _array(code: str, tensor: Any) -> array:
    """Return a numpy array as an array of the standard library.  code: the letter of its type."""
    values = array(code)
    values.frombytes(tensor.tobytes())
    return values


def save(name: str, splits: dict[str, Examples], facts: dict[str, Any]) -> None:
    """Store one entry. Do nothing if another process was faster, or if the disk does not allow it."""
    place = folder() / name
    if place.exists() and load(name) is not None:
        return
    tensors = {}
    for split, examples in splits.items():
        columns = {"ids": examples.ids} | {f"parts.{name}": c for name, c in examples.parts.items()}
        for field, column in columns.items():
            tensors[f"{split}.{field}"] = np.array(column.values, dtype="i")
            tensors[f"{split}.{field}.ends"] = np.array(column.ends, dtype="q")
        tensors[f"{split}.targets"] = np.array(examples.targets, dtype="i")
        tensors[f"{split}.learnt"] = np.frombuffer(bytes(examples.learnt), dtype="u1")
    lists = {split: {"sources": e.sources, "parts": list(e.parts)} for split, e in splits.items()}
    with contextlib.suppress(OSError, SafetensorError), storage.new_folder(place) as draft:
        save_file(tensors, draft / TOKENS)
        contents = {
            "key": name,
            "tokens": storage.digest(draft / TOKENS),
            "splits": lists,
            "facts": facts,
        }
        storage.write(draft / CONTENTS, storage.seal(json.dumps(contents).encode()))
