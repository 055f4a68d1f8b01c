"""What runs leave: raw JSON in an ignored folder, and for every benchmark one sorted CSV that is
committed."""

import csv
import json
import os
import platform
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parents[1]
RAW = BENCHMARKS.parent / "runs" / "bench"
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "graftlm")
# Up to this load average a speed counts as measured. The run itself adds one, its parent and kernel a little.
QUIET = 1.25
CIRCUMSTANCES = ("wall_s", "load", "threads", "machine", "date")

Row = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """One committed CSV.

    benchmark: its folder.  key: the columns that identify and sort the rows; the first `named` of them (all,
    if None) make the name of a run.  facts: the other columns.  rows: turns a raw run into its rows.  exact:
    columns that keep all digits instead of five.
    """

    benchmark: str
    key: tuple[str, ...]
    facts: tuple[str, ...]
    rows: Callable[[dict[str, Any]], Iterable[Row]]
    file: str = "results.csv"
    named: int | None = None
    exact: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        return BENCHMARKS / self.benchmark / self.file

    @property
    def raw(self) -> Path:
        """The folder of the raw runs."""
        return RAW / self.benchmark

    def name(self, row: Row) -> str:
        """Return the name of the run that gave this row."""
        return ".".join(cell_text(row[column]) for column in self.key[: self.named])

    def read(self) -> list[Row]:
        """Return the committed rows; an empty cell is a missing key."""
        return read_csv(self.path)

    def of(self, folder: Path) -> list[Row]:
        """Return the rows of the raw runs in a folder; what is None is a missing key."""
        rows = (row for run in raw_runs(folder) for row in self.rows(run))
        return [{column: value for column, value in row.items() if value is not None} for row in rows]

    def known(self, folder: Path, *, committed: bool = True) -> dict[str, Row]:
        """Return one row for each finished run by its name: of the CSV, and of the raw runs in the folder."""
        rows = [*(self.read() if committed else []), *self.of(folder)]
        return {self.name(row): row for row in rows}

    def merge(self, folder: Path) -> tuple[int, int]:
        """Replace and add the rows of the raw runs in a folder. Return how many were read and how many there
        are.

        All rows of a run are replaced by those of its new run.
        """
        fresh = self.of(folder)
        replaced = {self.name(row) for row in fresh}
        rows = [row for row in self.read() if self.name(row) not in replaced] + fresh
        write_csv(self.path, self.key, self.facts, rows, self.exact)
        return len(fresh), len(rows)


def sort_key(row: Row, key: Sequence[str]) -> list[tuple[bool, Any]]:
    """Return the sort key of a row: numbers before words.

    >>> sorted([{"n": "all"}, {"n": 1000}, {"n": 500}], key=lambda row: sort_key(row, ["n"]))
    [{'n': 500}, {'n': 1000}, {'n': 'all'}]
    """
    return [(isinstance(row[column], str), row[column]) for column in key]


def read_csv(path: Path) -> list[Row]:
    """Return the rows of a CSV with numbers as numbers; none if there is no such file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [{k: parsed(v) for k, v in row.items() if v != ""} for row in csv.DictReader(file)]


def write_csv(
    path: Path, key: Sequence[str], facts: Sequence[str], rows: Iterable[Row], exact: Sequence[str] = ()
) -> None:
    """Write rows sorted by their key, floats with five digits except in the exact columns."""
    columns = [*key, *facts]
    lines = [[cell_text(row.get(c), c in exact) for c in columns] for row in rows]
    # Sorted as they will be read: rounding must not change the order.
    lines.sort(key=lambda line: sort_key(dict(zip(columns, map(parsed, line), strict=True)), key))
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *lines])
    partial.replace(path)


def cell_text(value: Any, exact: bool = False) -> str:
    """Return a value as it stands in a CSV; None is an empty cell.

    >>> cell_text(0.123456), cell_text(0.123456, exact=True), cell_text(1234567), cell_text(None)
    ('0.12346', '0.123456', '1234567', '')
    """
    if isinstance(value, float) and not exact:
        return f"{value:.5g}"
    return "" if value is None else str(value)


def parsed(text: str) -> Any:
    """Return a cell as a number if it is one, else as it is.

    >>> parsed("7"), parsed("0.5"), parsed("lora")
    (7, 0.5, 'lora')
    """
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def raw_runs(folder: Path) -> list[dict[str, Any]]:
    """Return the raw runs in a folder, sorted by file name."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def write_raw(path: Path, facts: Mapping[str, Any]) -> None:
    """Write a raw run, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(facts, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def circumstances(run: dict[str, Any]) -> Row:
    """Return when, where and under which load a raw run was measured; load: the larger of beginning and
    end."""
    machine = run["machine"]
    return {
        "wall_s": run.get("wall_s"), "load": max(run["load"]) if "load" in run else None,
        "threads": machine["threads"], "machine": machine_name(machine), "date": machine["date"],
    }  # fmt: skip


def speeds(run: dict[str, Any], **measured: Any) -> Row:
    """Return these speeds if the machine was quiet at both ends of the run, else nothing."""
    return measured if max(run.get("load", [float("inf")])) <= QUIET else {}


def machine() -> dict[str, Any]:
    """Return where and with what a run is measured: for its raw file."""
    import torch  # late: tables are made without it

    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(), "cores": os.cpu_count(),
        "threads": torch.get_num_threads(), "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES}, "date": date.today().isoformat(),
    }  # fmt: skip


def machines() -> dict[str, Row]:
    """Return the machines of machines.csv by their letter."""
    return {row["machine"]: row for row in read_csv(BENCHMARKS / "machines.csv")}


def machine_name(facts: Mapping[str, Any]) -> str:
    """Return the letter of a machine with its versions; one that is new gets the next letter in
    machines.csv."""
    columns = ("cpu", "cores", "python", *PACKAGES)
    described = {k: v for k, v in (facts | facts["packages"]).items() if k in columns}
    known = machines()
    for name, row in known.items():
        if all(str(row[column]) == str(described[column]) for column in columns):
            return name
    name = next(letter for letter in string.ascii_uppercase if letter not in known)
    rows = [*known.values(), {"machine": name, **described}]
    write_csv(BENCHMARKS / "machines.csv", ("machine",), columns, rows)
    return name
