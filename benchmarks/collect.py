"""Put raw runs into the committed CSVs.

    python benchmarks/collect.py                every benchmark that has raw runs
    python benchmarks/collect.py methods real   these

Raw runs are the JSON files in runs/bench/NAME, which git ignores. The rows of a new run replace those of an
old run of the same name; all other rows stay. The raw files stay too.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent / "common"))
from results import Table

HERE = Path(__file__).parent

BENCHMARKS = sorted(path.parent.name for path in HERE.glob("*/columns.py"))


def tables(benchmark: str) -> tuple[Table, ...]:
    """Return the CSVs of a benchmark, as its columns.py describes them."""
    spec = importlib.util.spec_from_file_location(f"{benchmark}_columns", HERE / benchmark / "columns.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.TABLES


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmarks", nargs="*", help=f"of {', '.join(BENCHMARKS)}; all by default")
    chosen = parser.parse_args().benchmarks or BENCHMARKS
    if unknown := set(chosen) - set(BENCHMARKS):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    for table in (table for benchmark in chosen for table in tables(benchmark)):
        if any(table.raw.glob("*.json")):
            new, rows = table.merge(table.raw)
            print(f"{table.path.relative_to(HERE.parent)}: {new} rows new, {rows} in all")


if __name__ == "__main__":
    main()
