"""The embedded base and data: a small language model of ours, and the generator that writes what it reads.

As a model name, `seedling` means the folder of this package; as a data path, `seedling:NAME` means a file
that the generator writes. Nothing here needs a network.
"""

import errno
import hashlib
import json
import os
import random
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from graft import storage
from graft.errors import DataError, MachineError, UsageError, one_of
from graft.seedling import entities, phrases, preferences, products, writing
from graft.storage.disk import number_of

FOLDER = Path(__file__).parent
DEMO = FOLDER / "demo.yaml"  # the recipe of `graft demo`
PREFIX = "seedling:"
# What the system says of a folder that is not for us to write in.
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT)


Rows = list[dict[str, Any]]


def _texts(n: int, seed: int, split: str) -> Rows:
    return [{"text": text} for text in writing.documents(n, seed, split)]


def _shelves(n: int, seed: int, split: str) -> Rows:
    """Return descriptions, each with the shelf that its product stands on: a task of one label."""
    draw, shelf = (
        random.Random(f"shelves {seed} {split}"),
        {kind: name for name, group in products.GROUPS.items() for kind in group.types},
    )
    items = islice(products.products(split, seed), n)
    return [{"text": writing.describe(item, draw), "label": shelf[item["type"]]} for item in items]


# name: (what writes the rows, number of rows, seed, split of the products)
DATASETS: dict[str, tuple[Callable[[int, int, str], Rows], int, int, str]] = {
    "text": (_texts, 90_000, 0, "train"),
    "text-held-out": (_texts, 400, 1, "held-out"),
    "descriptions": (writing.sft_rows, 4_000, 2, "train"),
    "descriptions-held-out": (writing.sft_rows, 200, 3, "held-out"),
    "shelves": (_shelves, 1_000, 4, "train"),
    "shelves-held-out": (_shelves, 200, 5, "held-out"),
    "entities": (entities.rows, 2_000, 6, "train"),
    "entities-held-out": (entities.rows, 200, 7, "held-out"),
    "preferences": (preferences.pairs, 2_000, 8, "train"),
    "preferences-held-out": (preferences.pairs, 200, 9, "held-out"),
    "verdicts": (preferences.verdicts, 2_000, 10, "train"),
    "verdicts-held-out": (preferences.verdicts, 200, 11, "held-out"),
    "prompts": (preferences.prompts, 2_000, 12, "train"),
    "prompts-held-out": (preferences.prompts, 250, 13, "held-out"),
}


def dataset(name: str, folder: str | Path | None = None) -> Path:
    """Return the JSONL file of `seedling:NAME` or NAME; write it if it is missing.

    folder: where it lies; by default the user's cache ($XDG_CACHE_HOME or ~/.cache). The file's name carries
    a hash of the generator, so a changed generator never meets an old file. Raises DataError for an unknown
    name, UsageError for a folder that cannot be written.
    """
    name = name.removeprefix(PREFIX)
    one_of("data", PREFIX + name, [PREFIX + known for known in DATASETS], DataError)
    write, n, seed, split = DATASETS[name]
    path = Path(folder or _cache()) / f"{name}-{_fingerprint(n, seed)}.jsonl"
    if not path.exists():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in write(n, seed, split))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Two processes may write at once; each replaces the file whole.
            with storage.new_file(path) as file, open(file, "w", encoding="utf-8") as stream:
                stream.writelines(lines)
        except (OSError, MachineError) as error:
            if number_of(error) not in FORBIDDEN:
                raise
            why = os.strerror(number_of(error))
            raise UsageError(
                f"the rows of {PREFIX}{name} cannot be written to {path.parent} ({why})",
                "a cache folder that can be written",
                "set XDG_CACHE_HOME to such a folder",
            ) from error
    return path


def located(data: Any) -> Any:
    """Return a recipe's `data:` section with every `seedling:NAME` replaced by the path of its file."""

    def path_of(where: Any) -> Any:
        if isinstance(where, list):
            return [path_of(one) for one in where]
        return str(dataset(where)) if isinstance(where, str) and where.startswith(PREFIX) else where

    return data.model_copy(update={key: path_of(getattr(data, key)) for key in ("train", "eval", "test")})


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "graft" / "seedling"


def _fingerprint(n: int, seed: int) -> str:
    modules = (products, phrases, writing, entities, preferences)
    sources = b"".join(Path(str(module.__file__)).read_bytes() for module in modules)
    return hashlib.sha256(sources + f"{n} {seed}".encode()).hexdigest()[:12]
