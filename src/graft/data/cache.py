"""Encoded data kept by the hash of everything it depends on. Safe to delete at any time.

    key = SHA-256 of: this format, the settings, every file's bytes, the tokenizer, the template

An entry is a folder with tokens.safetensors and data.json, written beside its place and renamed into it: it is whole or
it is not there. An entry that cannot be read is no entry; a cache that cannot be written is no error.
"""

import contextlib
import hashlib
import json
import os
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from graft import storage
from graft.data.encode import Column, Examples

VERSION = 3  # raise when encoding changes


def folder() -> Path:
    """GRAFT_CACHE, else the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("GRAFT_CACHE") or Path(home) / "graft") / "data"


def key(files: Iterable[str], tokenizer: Any, settings: Any) -> str | None:
    """The name of the entry; None where the data have no bytes to hash (hub names)."""
    digest = hashlib.sha256(json.dumps([VERSION, settings], sort_keys=True, default=str).encode())
    for name in files:
        if name.startswith("hub:"):
            return None
        with open(name, "rb") as stream:
            digest.update(f"\0{name}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}".encode())
    digest.update(_tokenizer(tokenizer).encode())
    return digest.hexdigest()[:40]


def _tokenizer(tokenizer: Any) -> str:
    """All that decides how this tokenizer writes ids, as text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    extra = [type(tokenizer).__name__, tokenizer.special_tokens_map, tokenizer.chat_template]
    return rules + json.dumps(extra, sort_keys=True, default=str)


def load(name: str) -> tuple[dict[str, Examples], dict[str, Any]] | None:
    """The examples of each split and the facts stored with them, or None."""
    try:
        facts = json.loads((folder() / name / "data.json").read_bytes())
        tensors = load_file(folder() / name / "tokens.safetensors")
        splits = {}
        for split, kept in facts["splits"].items():

            def column(name: str, split: str = split) -> Column:
                values = (
                    (array("i"), tensors[f"{split}.{name}"]),
                    (array("q"), tensors[f"{split}.{name}.ends"]),
                )
                for flat, tensor in values:
                    flat.frombytes(tensor.tobytes())
                return Column(values[0][0], values[1][0])

            targets = array("i")
            targets.frombytes(tensors[f"{split}.targets"].tobytes())
            learnt = bytearray(tensors[f"{split}.learnt"])
            parts = {name: column(f"parts.{name}") for name in kept["parts"]}
            splits[split] = Examples(column("ids"), learnt, targets, parts, kept["sources"])
        return splits, facts["facts"]
    except (OSError, ValueError, KeyError, SafetensorError):
        return None


def save(name: str, splits: dict[str, Examples], facts: dict[str, Any]) -> None:
    """Store one entry; does nothing where another process was faster or the disk does not allow it."""
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
    kept = {split: {"sources": e.sources, "parts": list(e.parts)} for split, e in splits.items()}
    with contextlib.suppress(OSError, SafetensorError), storage.new_folder(place) as draft:
        save_file(tensors, draft / "tokens.safetensors")
        storage.write(draft / "data.json", json.dumps({"splits": kept, "facts": facts}).encode())
