"""Which files of a folder are rows, and which part of the data they hold.

    train.jsonl  dev.tsv  test-00000-of-00002.parquet  train/part.csv     told by names, as datasets does

Rows are files of one format: beside tables, a text is a licence or a description. What is left out is named
in the data report.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from graft.errors import DataError, listed

KINDS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".txt": "text",
    ".md": "text",
    ".conll": "conll",
}
WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval", "evaluation"),
    "test": ("test", "testing"),
}
# Where rows of a split are looked for, in this order; "" is a file whose name tells no split.
INSTEAD = {
    "train": ("train", ""),
    "validation": ("validation", "test", "", "train"),
    "test": ("test", "validation", "", "train"),
}
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")  # owner/name
# Files about the rows, in a folder of texts.
ABOUT = re.compile(
    r"readme|licen[cs]e|copying|notice|change[_-]?log|authors|contribut|citation|requirements|code[_-]of[_-]",
    re.IGNORECASE,
)


def kind_of(path: Path) -> str | None:
    """Return the kind of file that the name promises, a value of KINDS; None for an unknown ending."""
    return KINDS.get(Path(path.stem if path.suffix == ".gz" else path.name).suffix.lower())


def endings() -> str:
    return ", ".join(KINDS) + ", each also with .gz"


def files_in(folder: Path, split: str = "train") -> list[Path]:
    """Return the files of a folder that hold the rows of a split, in the order of their names.

    A folder without names of splits gives all its rows for any of them. Raises DataError without such rows.
    """
    by_split = _by_split(folder)
    if (folder / "state.json").exists() and (folder / "dataset_info.json").exists():
        raise DataError(
            f"The folder {folder} was written by save_to_disk of datasets, as .arrow files",
            f"files ending in {endings()}",
            "write the rows again with to_parquet or to_json, and name that file",
        )
    if not by_split:
        raise DataError(
            f"The folder {folder} holds no file that can be read",
            f"files ending in {endings()}",
            "point data.train to the folder of the data files",
        )
    if len(by_split) == 1:
        return next(iter(by_split.values()))
    found = next((by_split[name] for name in INSTEAD[split] if name in by_split), None)
    if found is None:
        names = ", ".join(path.name for files in by_split.values() for path in files)
        raise DataError(
            f"The folder {folder} holds no rows to train on: {names}",
            "a file whose name says train, or none that says validation or test",
            "name the files to train on: data.train=FOLDER/FILE",
        )
    return found


def validation_in(folder: Path) -> list[Path]:
    """Return the files of a folder that are held out, by their names; none beside no others."""
    by_split = _by_split(folder)
    return by_split.get("validation", []) if len(by_split) > 1 else []


def left_out(folder: Path, used: Iterable[str]) -> list[str]:
    """Return the names of files in the folder that could be read and are not in `used`, but for READMEs."""
    known = set(used)
    readable = (path for path in _visible(folder) if path.stem.lower() != "readme")
    return [str(path.relative_to(folder)) for path in readable if str(path) not in known]


def told(folders: Iterable[Path], held: Iterable[str], used: Iterable[str]) -> list[str]:
    """Return what was taken of folders, one sentence each.  held: files of the rows held out."""
    known, sentences = list(used), list[str]()
    apart = [Path(name).name for name in held]
    if apart:
        sentences.append(f"the rows held out are those of {listed(apart)}, by its name")
    for folder in folders:
        if rest := left_out(folder, known):
            sentences.append(f"not read of {folder}: {listed(rest, 8)}")
    return sentences


def _by_split(folder: Path) -> dict[str, list[Path]]:
    """Return the files with rows by the split that their names tell, or "" where they tell none."""
    by_split: dict[str, list[Path]] = {}
    for path in _of_one_format(folder):
        by_split.setdefault(_split_of(path.relative_to(folder)), []).append(path)
    return by_split


def _of_one_format(folder: Path) -> list[Path]:
    """Return the files of the format in which the folder has its rows.

    Tables before texts, formats with names of splits before others, JSON (of settings, often) last of the
    tables; then the format with the most bytes.
    """
    files = _visible(folder)
    kinds: dict[str, list[Path]] = {}
    for path in files:
        kinds.setdefault(kind_of(path) or "", []).append(path)

    def rank(kind: str) -> tuple[bool, bool, bool, int]:
        split = any(_split_of(path.relative_to(folder)) for path in kinds[kind])
        size = sum(path.stat().st_size for path in kinds[kind])
        return kind == "text", not split, kind == "json", -size

    chosen = min(kinds, key=rank) if kinds else ""
    return [path for path in kinds.get(chosen, []) if chosen != "text" or not ABOUT.match(path.name)]


def _visible(folder: Path) -> list[Path]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and kind_of(path)]
    return [path for path in files if not _hidden(path.relative_to(folder))]


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts) or path.stem.lower() == "readme"


def _split_of(path: Path) -> str:
    """Return the split that a path inside the folder names, the file before the folders; "" for none."""
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    for part in reversed(plain.with_suffix("").parts):
        for word in re.findall("[a-z]+", part.lower()):
            for split, words in WORDS.items():
                if word in words:
                    return split
    return ""
