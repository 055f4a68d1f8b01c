"""Seconds and memory of a step beside TRL's, turn by turn, on an otherwise idle machine.

    python benchmarks/preference/steps.py                every row that has no speeds yet
    python benchmarks/preference/steps.py --quick dpo    a trial of few steps, which leaves the results alone
    python benchmarks/preference/steps.py --threads 1    one thread a side; all cores by default
    python benchmarks/collect.py preference              raw runs -> results.csv
    python benchmarks/preference/table.py                results.csv -> RESULTS.md

Both sides learn the same pairs in the same order from the same adapter, A B, B A, A B ... A round in which
other processes used more than half a core is repeated. A row writes runs/bench/preference/NAME.json.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "common"))
import grid
import internals
import material
from columns import RESULTS, TOOLS
from results import machine, write_raw
from turns import MOST, Others, Side, environment

SIDE = Path(__file__).with_name("step_side.py")
TURN, ROUNDS, WARM, TRIES = (
    8,
    6,
    4,
    3,
)  # steps of a turn, quiet rounds, steps before them, rounds begun for one
ROWS = {f"step.{setting.stage}.{setting.data}": setting for setting in grid.SETTINGS}


def main() -> int:
    options = _options()
    raw = RESULTS.raw / "trial" if options.quick else RESULTS.raw
    known = RESULTS.known(raw, committed=not options.quick)
    failed = 0
    for name, setting in ROWS.items():
        cell = grid.Cell(setting, 0)
        finished = known.get(f"step {setting.stage}.{setting.data}.0", {})
        if options.rows and not any(word in name for word in options.rows):
            continue
        if "step_ms" in finished and not options.again:
            continue
        print(name, flush=True)
        found = measured(cell, options)
        write_raw(raw / f"{name}.json", found)
        failed += found["quiet"] < found["wanted"]
    return failed


def measured(cell: grid.Cell, options: argparse.Namespace) -> dict[str, Any]:
    """Return the raw facts of a row."""
    import starts  # late: torch, which no --help needs
    from transformers.models.auto.tokenization_auto import AutoTokenizer

    turn, rounds, warm = (2, 1, 1) if options.quick else (TURN, ROUNDS, WARM)
    longest = warm + turn * rounds * (1 if options.quick else TRIES)
    cell = replace(cell, setting=replace(cell.setting, steps=longest))
    starts.prepare([cell])
    folder = material.WORK / "steps" / cell.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    recipe = cell.recipe(starts.start_of(cell, folder), folder)
    chosen = internals.read(recipe)
    order = starts.order_of(chosen, internals.load_base(chosen))
    spec = {
        "stage": cell.setting.stage, "setting": asdict(cell.setting), "recipe": recipe, "order": order,
        "warm": warm,
    }  # fmt: skip
    (folder / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
    logs = material.WORK / "log"
    logs.mkdir(parents=True, exist_ok=True)
    begun, load, others = time.perf_counter(), os.getloadavg()[0], Others()
    sides: dict[str, Side] = {}
    done: list[dict[str, Any]] = []
    try:
        for tool in TOOLS:
            log = logs / f"step.{cell.name}.{tool}.txt"
            log.unlink(missing_ok=True)
            given = {"side": tool, "spec": str(folder / "spec.json")}
            sides[tool] = Side(SIDE, given, {**os.environ, **environment(options.threads)}, log)
            others.pids.add(sides[tool].pid)
        while not _enough(done, rounds, options.quick):
            first_to_last = TOOLS if len(done) % 2 == 0 else TOOLS[::-1]
            others.wait(0.0 if options.quick else options.patience)
            others.cores()
            turns = {tool: sides[tool].ask(do="turn", units=turn) for tool in first_to_last}
            done.append({"others": others.cores(), "turns": turns})
            shown = "  ".join(f"{tool} {_mean_ms(turns[tool]):.0f} ms" for tool in TOOLS)
            print(f"  round {len(done)}  {shown}  others {done[-1]['others']:.2f}", flush=True)
        ended = {tool: side.stop() for tool, side in sides.items()}
    finally:
        for side in sides.values():
            side.kill()
    facts = material.facts(cell.setting.data, cell.seed)
    return {
        "cell": {"part": f"step {cell.setting.stage}", **_numbers(cell), "train": facts["train"]},
        "ready": {tool: side.facts for tool, side in sides.items()}, "rounds": done, "ended": ended,
        "quiet": sum(r["others"] <= MOST for r in done), "wanted": rounds, "turn": turn,
        "tokens": _tokens(cell, order, AutoTokenizer.from_pretrained(grid.model())),
        "wall_s": time.perf_counter() - begun, "load": [load, os.getloadavg()[0]],
        "machine": machine() | {"threads": options.threads},
    }  # fmt: skip


def _enough(done: list[dict[str, Any]], rounds: int, quick: bool) -> bool:
    """Return whether enough rounds were quiet, or none can be hoped for."""
    quiet = sum(r["others"] <= MOST for r in done)
    most = rounds if quick else rounds * TRIES
    return quiet == rounds or quiet + most - len(done) < rounds or len(done) == most


def _tokens(cell: grid.Cell, order: list[int], tokenizer: Any) -> list[int]:
    """Return the tokens of every step: each answer with its prompt and the token that ends it."""
    rows = material.rows(cell.rows("pairs"))
    texts = [row["prompt"] + row[side] for row in rows for side in ("chosen", "rejected")]
    sizes = [len(ids) + 1 for ids in tokenizer(texts)["input_ids"]]
    size = cell.setting.batch_size
    steps = [order[at : at + size] for at in range(0, len(order), size)]
    return [sum(sizes[2 * row] + sizes[2 * row + 1] for row in rows) for rows in steps]


def _mean_ms(turn: dict[str, Any]) -> float:
    return 1000 * statistics.mean(turn["seconds"])


def _numbers(cell: grid.Cell) -> dict[str, Any]:
    numbers = asdict(cell.setting) | {"seed": cell.seed}
    return {key: value for key, value in numbers.items() if key != "stage"}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", help="words of the rows' names; all rows by default")
    parser.add_argument("--again", action="store_true", help="repeat finished rows too")
    parser.add_argument("--quick", action="store_true", help="few steps, as a trial in a folder of its own")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each side; all cores")
    parser.add_argument(
        "--patience", type=float, default=120.0, help="seconds that a round may wait for a quiet machine"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
