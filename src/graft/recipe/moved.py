"""Rows that lie in the folder of their run (`data.kept_rows`) are found there after the folder was moved."""

from pathlib import Path
from typing import Any

FOLDER = "rows"  # of a run, or of a chain of runs, which lies above them


def rows_moved_with(settings: dict[str, Any], folder: Path) -> None:
    """Change the names of a run's own rows to where they are now.

    settings: of the recipe.yaml in this folder, with the output that the run was given.
    """
    output = Path(str(settings.get("output")))
    homes = {output / FOLDER: folder / FOLDER, output.parent / FOLDER: folder.parent / FOLDER}
    entries = settings.get("stages")
    for part in (settings, *(entries if isinstance(entries, list) else [])):
        data = part.get("data") if isinstance(part, dict) else None
        if not isinstance(data, dict):
            continue
        for key, value in data.items():
            home = homes.get(Path(value).parent) if isinstance(value, str) and key != "template" else None
            if home is not None and not Path(value).exists() and (home / Path(value).name).exists():
                data[key] = str(home / Path(value).name)
