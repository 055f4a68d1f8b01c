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
from graft.data.encode import Examples

VERSION = 2  # raise when encoding changes
ARRAYS = {"ids": "i", "ends": "q", "targets": "i", "target_ids": "i", "target_ends": "q", "tags": "i"}


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
        for split, sources in facts["sources"].items():
            read = {field: array(code) for field, code in ARRAYS.items()}
            for field, values in read.items():
                values.frombytes(tensors[f"{split}.{field}"].tobytes())
            splits[split] = Examples(sources=sources, learnt=bytearray(tensors[f"{split}.learnt"]), **read)
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
        for field, code in ARRAYS.items():
            tensors[f"{split}.{field}"] = np.array(getattr(examples, field), dtype=code)
        tensors[f"{split}.learnt"] = np.frombuffer(bytes(examples.learnt), dtype="u1")
    sources = {split: examples.sources for split, examples in splits.items()}
    with contextlib.suppress(OSError, SafetensorError), storage.new_folder(place) as draft:
        save_file(tensors, draft / "tokens.safetensors")
        storage.write(draft / "data.json", json.dumps({"sources": sources, "facts": facts}).encode())
