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

from graft import storage
from graft.data import token_file
from graft.data.encode import Column, Examples
from graft.data.scratch import Numbers, Sources

VERSION = 7  # raise when encoding or the form of entries changes
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
        arrays = token_file.read(folder() / name / TOKENS)
        splits = {split: _examples(arrays, split, lists) for split, lists in contents["splits"].items()}
        return splits, contents["facts"]
    except (OSError, ValueError, KeyError):
        return None


def _examples(arrays: dict[str, Numbers], split: str, lists: dict[str, list[str]]) -> Examples:
    """Build the examples of a split from its arrays, and from the names of its files and parts."""

    def column(field: str) -> Column:
        return Column(arrays[f"{split}.{field}"], arrays[f"{split}.{field}.ends"][:])

    return Examples(
        ids=column("ids"),
        learnt=arrays[f"{split}.learnt"],
        targets=arrays[f"{split}.targets"][:],
        parts={part: column(f"parts.{part}") for part in lists["parts"]},
        sources=Sources.of(lists["files"], arrays[f"{split}.file"][:], arrays[f"{split}.line"][:]),
    )


def save(name: str, splits: dict[str, Examples], facts: dict[str, Any]) -> None:
    """Store one entry. Do nothing if another process was faster, or if the disk does not allow it."""
    place = folder() / name
    if place.exists() and load(name) is not None:
        return
    arrays: dict[str, Numbers | array] = {}
    for split, examples in splits.items():
        columns = {"ids": examples.ids} | {f"parts.{name}": c for name, c in examples.parts.items()}
        for field, column in columns.items():
            arrays[f"{split}.{field}"] = column.values
            arrays[f"{split}.{field}.ends"] = column.ends
        arrays[f"{split}.targets"] = examples.targets
        arrays[f"{split}.learnt"] = examples.learnt
        arrays[f"{split}.file"], arrays[f"{split}.line"] = examples.sources.file, examples.sources.line
    lists = {split: {"files": e.sources.files, "parts": list(e.parts)} for split, e in splits.items()}
    with contextlib.suppress(OSError), storage.new_folder(place) as draft:
        token_file.write(draft / TOKENS, arrays)
        contents = {
            "key": name,
            "tokens": storage.digest(draft / TOKENS),
            "splits": lists,
            "facts": facts,
        }
        storage.write(draft / CONTENTS, storage.seal(json.dumps(contents).encode()))
