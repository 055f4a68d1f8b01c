"""Try the cases of one cell of the harness of faults, and write the raw run; `run.py` starts this.

    python benchmarks/reliability/one.py graft.crash.later-save release

What has been tried so far is kept every few seconds, and a process that starts again goes on from there.
"""

import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "common"))
sys.path.append(str(Path(__file__).parents[2] / "tests" / "support"))
sys.path.append(str(Path(__file__).parents[2] / "tests" / "faults"))
import cells
import every
import theirs
from columns import RESULTS
from results import machine, write_raw

KEEP_S = 10.0  # between two notes of how far the cases are
CELLS = every.CELLS | theirs.CELLS


def places(name: str, level: str) -> tuple[Path, Path]:
    """Return where the raw run of a cell goes, and where its progress; only release runs are collected."""
    folder = RESULTS.raw if level == "release" else RESULTS.raw / level
    return folder / f"{name}.json", folder / "progress" / f"{name}.json"


def main() -> None:
    name, level = sys.argv[1:]
    cell = CELLS[name]
    raw, progress = places(name, level)
    begun = {"load": os.getloadavg()[0], "machine": machine()}
    tally, done = begin(progress)
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        stand = cell.build(Path(folder))
        try:
            numbers = cell.numbers(stand.total, level)
            told = time.monotonic()
            for at in range(done, len(numbers)):
                tally.add(stand, numbers[at])
                if time.monotonic() - told > KEEP_S:
                    told = time.monotonic()
                    write_raw(progress, {"done": at + 1, "of": len(numbers), **vars(tally)})
        finally:
            stand.close()
    facts = {
        "tool": cell.tool, "part": cell.part, "what": cell.what, "level": level, **vars(tally),
        "wall_s": tally.seconds, "load": [begun["load"], os.getloadavg()[0]], "machine": begun["machine"],
    }  # fmt: skip
    write_raw(raw, facts)
    progress.unlink(missing_ok=True)


def begin(progress: Path) -> tuple[cells.Tally, int]:
    """Return what was tried before, and how many cases that were."""
    if not progress.exists():
        return cells.Tally(), 0
    kept: dict[str, Any] = json.loads(progress.read_text(encoding="utf-8"))
    done = kept.pop("done")
    del kept["of"]
    for counted in ("verdicts", "sums"):
        kept[counted] = Counter(kept[counted])
    return cells.Tally(**kept), done


if __name__ == "__main__":
    main()
