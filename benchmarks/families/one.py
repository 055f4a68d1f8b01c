"""Check one family in this process and write its raw file; `run.py` starts it.

python benchmarks/families/one.py NAME
"""

import os
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "common"))
sys.path.append(str(Path(__file__).parents[2] / "tests" / "support"))
import families
import family_checks
import torch
from columns import CELLS, RESULTS
from results import machine, write_raw

SECONDS = 180  # after which a family counts as hung


def main() -> None:
    name = sys.argv[1]
    signal.alarm(SECONDS)  # ends the process; run.py writes its row
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    begun = time.perf_counter()
    if reason := families.why_not_text(name):
        cells = {"transformers": f"left out: {reason}"}
    else:
        with tempfile.TemporaryDirectory() as folder:
            cells = family_checks.examine(name, Path(folder), CELLS)
    facts = {"family": name, "task": families.families()[name].task, "cells": cells}
    write_raw(
        RESULTS.raw / f"{name}.json", facts | {"wall_s": time.perf_counter() - begun, "machine": machine()}
    )


if __name__ == "__main__":
    main()
