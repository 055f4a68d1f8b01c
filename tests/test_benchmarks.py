"""The benchmarks' committed numbers: sorted CSVs without duplicates, and pages that are what the scripts make
of them."""

import ast
import csv
import importlib.util
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
# name of a benchmark: the pages that its table.py writes
PAGES = {
    "alignment": {"RESULTS.md", "curves.svg"},
    "families": {"RESULTS.md"},
    "judging": {"RESULTS.md"},
    "memory": {"RESULTS.md"},
    "methods": {"RESULTS.md", "quality.svg"},
    "preference": {"RESULTS.md", "own.svg"},
    "pretraining": {"RESULTS.md", "losses.svg"},
    "real": {"RESULTS.md"},
    "reliability": {"RESULTS.md"},
    "shipping": {"RESULTS.md"},
    "speed": {"RESULTS.md", "parts.svg"},
}
INSIDE = BENCHMARKS / "common" / "internals.py"  # the only file that may import from inside the package


def module(path):
    """Import a script of the benchmarks under a name of its own."""
    spec = importlib.util.spec_from_file_location(f"benchmarks_{path.stem}", path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(scope="module")
def collect():
    before = list(sys.path)
    yield module(BENCHMARKS / "collect.py")
    sys.path[:] = before


def all_tables(collect):
    return [table for name in collect.BENCHMARKS for table in collect.tables(name)]


def test_every_benchmark_with_columns_has_pages(collect):
    assert set(collect.BENCHMARKS) == set(PAGES)


def test_every_csv_is_described_and_has_exactly_its_columns(collect):
    described = {table.path: [*table.key, *table.facts] for table in all_tables(collect)}
    assert set(BENCHMARKS.glob("*/*.csv")) == set(described)
    for path, columns in described.items():
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.reader(file))
        assert lines[0] == columns, path
        assert all(len(line) == len(columns) for line in lines), path
        assert len(lines) > 1, path


def test_rows_are_sorted_by_key_and_no_key_comes_twice(collect):
    for table in all_tables(collect):
        orders = [sys.modules["results"].sort_key(row, table.key) for row in table.read()]
        assert orders == sorted(orders), table.path
        assert not [key for key, count in Counter(map(str, orders)).items() if count > 1], table.path


def test_writing_what_was_read_changes_no_byte(collect, tmp_path):
    for table in all_tables(collect):
        copy = tmp_path / "copy.csv"
        sys.modules["results"].write_csv(copy, table.key, table.facts, table.read(), table.exact)
        assert copy.read_bytes() == table.path.read_bytes(), table.path


def test_every_machine_is_described(collect):
    known = sys.modules["results"].machines()
    named = {row["machine"] for table in all_tables(collect) for row in table.read() if "machine" in row}
    assert named <= set(known)


def test_a_new_run_replaces_the_rows_of_the_old_one(collect, tmp_path):
    results = sys.modules["results"]

    def rows(run):
        return [{"name": run["name"], "form": form, "loss": loss} for form, loss in run["forms"].items()]

    table = results.Table(str(tmp_path), ("name", "form"), ("loss",), rows, named=1)
    results.write_raw(tmp_path / "raw" / "a.json", {"name": "a", "forms": {"x": 1.0, "y": 2.0}})
    results.write_raw(tmp_path / "raw" / "b.json", {"name": "b", "forms": {"x": 3.1234567}})
    table.merge(tmp_path / "raw")
    results.write_raw(tmp_path / "raw" / "a.json", {"name": "a", "forms": {"x": 0.5, "y": None}})
    (tmp_path / "raw" / "b.json").unlink()
    assert set(table.known(tmp_path / "raw")) == {"a", "b"}
    assert table.of(tmp_path / "raw") == [{"name": "a", "form": "x", "loss": 0.5}, {"name": "a", "form": "y"}]
    assert table.merge(tmp_path / "raw") == (2, 3)
    assert table.path.read_text() == "name,form,loss\na,x,0.5\na,y,\nb,x,3.1235\n"


def test_speeds_are_left_out_if_the_machine_was_not_idle(collect):
    speeds = sys.modules["results"].speeds
    assert speeds({"load": [0.4, 1.0]}, tokens_per_s=9.0) == {"tokens_per_s": 9.0}
    assert speeds({"load": [0.4, 2.0]}, tokens_per_s=9.0) == {}
    assert speeds({}, tokens_per_s=9.0) == {}


@pytest.mark.parametrize("name", PAGES)
def test_the_committed_pages_are_what_the_csv_gives(name, tmp_path):
    words = [sys.executable, BENCHMARKS / name / "table.py", "--to", tmp_path]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == PAGES[name]
    for page in tmp_path.iterdir():
        assert page.read_text(encoding="utf-8") == (BENCHMARKS / name / page.name).read_text(
            encoding="utf-8"
        ), f"run `python benchmarks/{name}/table.py`"


def test_every_folder_says_its_question_machine_and_raw_runs():
    folders = [path for path in BENCHMARKS.iterdir() if any(path.glob("*.py")) and path.name != "common"]
    listed = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    for folder in folders:
        text = (folder / "README.md").read_text(encoding="utf-8")
        assert all(word in text for word in ("**Question.**", "**Machine and date.**", "raw runs")), folder
        assert f"]({folder.name}/README.md)" in listed, folder


def test_names_inside_the_package_are_imported_in_one_place():
    for path in BENCHMARKS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            inside = [name for name in names if name.startswith("graft.")]
            assert not inside or path == INSIDE, path


def test_every_internal_name_exists():
    code = "import internals\nfor name in internals._HOME: getattr(internals, name)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=INSIDE.parent, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-500:]
