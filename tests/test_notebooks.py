"""The notebooks of docs/notebooks run from top to bottom, and show what is kept in them."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("pandas")

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs/notebooks"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))


@pytest.fixture(scope="module")
def runner():
    spec = importlib.util.spec_from_file_location("run_notebooks", ROOT / "docs/run_notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def html_of(notebook):
    """Return all HTML that a notebook shows."""
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    return "\n".join(out["data"]["text/html"] for out in outputs if "text/html" in out.get("data", {}))


@pytest.mark.parametrize(
    "name",
    [n if n == "first_steps.ipynb" else pytest.param(n, marks=pytest.mark.slow) for n in NOTEBOOKS],
)
def test_a_notebook_runs_and_shows_what_is_kept_in_it(name, runner, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), *filter(None, sys.path)]))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    kept = nbformat.read(FOLDER / name, as_version=4)
    ran = runner.executed(FOLDER / name, tmp_path)
    shown = html_of(ran)
    assert "<polyline" in shown or name == "compare_methods.ipynb", "a loss is drawn"
    assert "<progress" not in shown, "no bar is left when a cell has ended"
    for cell, before in zip(ran.cells, kept.cells, strict=True):
        kinds = [(out.output_type, sorted(out.get("data", ()))) for out in cell.get("outputs", ())]
        assert kinds == [(out.output_type, sorted(out.get("data", ()))) for out in before.get("outputs", ())]


def test_there_are_three_short_notebooks():
    assert NOTEBOOKS == ["compare_methods.ipynb", "first_steps.ipynb", "own_rows.ipynb"]
    for name in NOTEBOOKS:
        assert (FOLDER / name).stat().st_size < 60_000, "they are read on a page"
