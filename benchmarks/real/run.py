"""The comparison on real data, run by run; what is finished is kept, so the same command goes on where it stopped.

    python benchmarks/real/run.py --jobs 2            every run that has no result yet, two at a time
    python benchmarks/real/run.py --list              what there is to do
    python benchmarks/real/run.py --only e2e.all      runs whose name holds this
    python benchmarks/real/table.py                   results/*.json -> RESULTS.md

Each run is a process of its own with --threads threads and leaves results/NAME.json.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path

import grid
import tasks

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "graftlm")


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--only", nargs="+", default=[], help="only runs whose name holds all of these")
    words.add_argument("--list", action="store_true", help="print the runs and whether they are done")
    words.add_argument("--jobs", type=int, default=1, help="runs side by side")
    words.add_argument("--threads", type=int, default=1, help="threads of each run")
    words.add_argument("--steps", type=int, help="fewer steps, for a trial; results go to runs/real/trial")
    words.add_argument("--cell", help=argparse.SUPPRESS)  # what the child process is called with
    asked = words.parse_args()
    results = tasks.WORK / "trial" if asked.steps else RESULTS
    known = {cell.name: cell for cell in grid.cells() if all(part in cell.name for part in asked.only)}
    if asked.cell:
        return carry_out(known[asked.cell], results, asked.steps)
    todo = [name for name in known if not (results / f"{name}.json").exists()]
    if asked.list:
        print("\n".join(f"{'todo' if name in todo else 'done'}  {name}" for name in known))
        return 0
    prepare([known[name] for name in todo])
    print(f"{len(known) - len(todo)} of {len(known)} runs are done, {len(todo)} to do", flush=True)
    return work(todo, asked.jobs, asked.threads, ["--steps", str(asked.steps)] if asked.steps else [])


def prepare(cells: Sequence[grid.Cell]) -> None:
    """Write the rows of every base and task once, before processes that need them run side by side."""
    from transformers.models.auto.tokenization_auto import AutoTokenizer  # late: --list is quick

    for setting in {cell.setting.base + cell.setting.task: cell.setting for cell in cells}.values():
        tokenizer = AutoTokenizer.from_pretrained(grid.folder(setting.base), local_files_only=True)
        tasks.stored(setting.base, setting.task, tokenizer, setting.context)


def work(todo: Sequence[str], jobs: int, threads: int, more: Sequence[str]) -> int:
    """Start the runs in order, `jobs` at a time. Returns how many failed."""
    limits = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS")}
    env = os.environ | limits | {"TOKENIZERS_PARALLELISM": "false", "GRAFT_CACHE": str(tasks.WORK / "cache")}
    waiting, running, failed = list(todo), {}, 0
    while waiting or running:
        while waiting and len(running) < jobs:
            name = waiting.pop(0)
            command = [sys.executable, __file__, "--cell", name, *more]
            running[name] = subprocess.Popen(command, env=env), time.perf_counter()
        time.sleep(0.2)
        for name, (process, begun) in list(running.items()):
            if process.poll() is not None:
                failed += process.returncode != 0
                word = "done" if process.returncode == 0 else f"FAILED ({process.returncode})"
                print(f"{word}  {name}  {time.perf_counter() - begun:.0f} s", flush=True)
                del running[name]
    return failed


def carry_out(cell: grid.Cell, results: Path, steps: int | None) -> int:
    """One run, in this process."""
    import torch

    import ours
    from graft.recipe import read

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if steps:
        cell = replace(cell, setting=replace(cell.setting, steps=steps))
    folder = tasks.WORK / ("trial-runs" if steps else "runs") / cell.name
    recipe, begun = read(cell.recipe(folder)), time.perf_counter()
    if cell.method == "none":
        found = ours.score(cell, recipe)
    elif cell.tool == "graft":
        found = ours.train(cell, recipe) | ours.score(cell, recipe)
    else:
        import peer  # late: PEFT and bitsandbytes take seconds to import

        model = peer.Peer(cell, recipe)
        found = model.train() | model.score()
    facts = {"cell": describe(cell), "wall_s": time.perf_counter() - begun, **found, "machine": machine()}
    results.mkdir(parents=True, exist_ok=True)
    partial = results / f"{cell.name}.json.partial"
    partial.write_text(json.dumps(facts, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    partial.replace(results / f"{cell.name}.json")
    shutil.rmtree(folder, ignore_errors=True)
    return 0


def describe(cell: grid.Cell) -> dict[str, object]:
    """The run in words and numbers, with what its rows were made from."""
    s = cell.setting
    cases, counts = tasks.test_of(cell.train_file().parent)
    answers = {name: [case.baselines[name] for case in cases] for name in cases[0].baselines}
    import ours  # late: as in carry_out

    if s.stage == "classify":
        true = [case.references[0] for case in cases]
        trivial = {name: ours.class_scores(texts, true) for name, texts in answers.items()}
    else:
        trivial = {name: ours.text_scores(texts, cases) | {"texts": []} for name, texts in answers.items()}
    return {
        "name": cell.name, "base": s.base, "task": s.task, "rows": cell.rows, "method": cell.method, "tool": cell.tool,
        "seed": cell.seed, "steps": s.steps, "batch_size": s.batch_size, "lr": s.lr.get(cell.method),
        "counts": counts, "baselines": trivial,
    }  # fmt: skip


def machine() -> dict[str, object]:
    """Where and with what this was measured."""
    model = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.processor())  # fmt: skip
    packages = {name: version(name) for name in PACKAGES}
    threads = os.environ.get("OMP_NUM_THREADS")
    return {"cpu": model, "cores": os.cpu_count(), "threads": threads, "python": platform.python_version(),
            "packages": packages, "date": date.today().isoformat()}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
