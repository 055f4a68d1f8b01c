"""Run the notebooks of docs/notebooks from top to bottom, and keep their outputs in them.

    python docs/run_notebooks.py [first_steps.ipynb ...]      needs the extra "test"

Each runs in a folder of its own that is gone afterwards. What differs from run to run, such as times of
cells, is not kept.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent / "notebooks"
LONGEST_S = 300  # of one cell


def executed(path: Path, folder: Path) -> Any:
    """Return a notebook with the outputs of a run in this folder. Raises CellExecutionError."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        notebook, timeout=LONGEST_S, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    # Hugging Face's own bars warn that they would like ipywidgets, which Graft does not need.
    client.execute(env=os.environ | {"GRAFT_PROGRESS": "on", "PYTHONWARNINGS": "ignore:IProgress not found"})
    return notebook


def cleaned(notebook: Any) -> Any:
    """Return a notebook without what differs from run to run."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
        for output in cell.get("outputs", ()):
            output.pop("transient", None)
            if "metadata" in output:
                output.metadata = {}
    return notebook


def main(names: list[str]) -> None:
    for path in [FOLDER / name for name in names] or sorted(FOLDER.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as folder:
            notebook = cleaned(executed(path, Path(folder)))
        nbformat.write(notebook, path)
        print(path.name)


if __name__ == "__main__":
    main(sys.argv[1:])
