"""Plan one run, then carry it out, each by the command of its own: python benchmarks/memory/one.py NAME"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "common"))
import grid
import work
from columns import RESULTS

MEMORY_ONLY = "GRAFT_BENCH_MEMORY"  # set in the environment: two steps, and no times
GRAFT = "import sys; from graft.cli import main; main()"


def main() -> None:
    work.run_one(__doc__, RESULTS, grid.cells, describe, carry_out)


def describe(cell: grid.Cell) -> dict[str, Any]:
    """Return the columns of the run; its name is there already."""
    return cell.facts()


def carry_out(cell: grid.Cell, folder: Path) -> dict[str, Any]:
    """Return the plan, the processor time that it took, and what the run took: bytes and seconds."""
    only_memory = os.environ.get(MEMORY_ONLY) == "1"
    grid.prepare(cell)
    folder.mkdir(parents=True)
    recipe, output = folder / "recipe.json", folder / "run"
    recipe.write_text(json.dumps(cell.recipe(output, 2 if only_memory else cell.setting.steps)))
    planned, used = graft("plan", str(recipe), "--json")
    _, of_run = graft("train", str(recipe))
    measured: dict[str, Any] = {"peak": of_run.ru_maxrss * 1024, "cpu_s": seconds(of_run)}
    lines = (output / "timing.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line) for line in lines]
    times = [line["seconds"] - line.get("rollout_seconds", 0.0) for line in steps if "seconds" in line]
    if not only_memory:
        measured["step_s"] = statistics.median(times[1:])
    measured["timing"] = steps
    return {"plan": json.loads(planned), "plan_s": seconds(used), "measured": measured}


def graft(*words: str) -> tuple[str, Any]:
    """Run a command of graft; return what it prints, and what the system says that it used."""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", GRAFT, *words], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"graft {' '.join(words)} ended with {process.returncode}")
    return printed, used


def seconds(used: Any) -> float:
    """Return the processor time that a process used."""
    return float(used.ru_utime + used.ru_stime)


if __name__ == "__main__":
    main()
