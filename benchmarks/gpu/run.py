"""QLoRA of 1.1 to 70 billion random weights on one GPU: speed, peak memory, the longest row that fits.

    python benchmarks/gpu/run.py                 every row that has no result yet
    python benchmarks/gpu/run.py G1 65b          rows whose group or name holds one of these words
    python benchmarks/gpu/run.py --list          what there is to do
    python benchmarks/gpu/run.py --again G4      repeat finished rows
    python benchmarks/gpu/run.py --device cpu    a trial of tiny shapes on the processor

A row is a process of its own. It writes runs/bench/gpu/NAME.json, and all rows together
runs/bench/gpu/results.csv.
"""

import argparse
import contextlib
import json
import subprocess
import sys
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

sys.path.extend(str(Path(__file__).parents[1] / name) for name in ("common", "speed"))
from large import Row, chosen
from results import RAW, raw_runs, write_csv, write_raw

KEY = ("group", "row")
FACTS = (
    "shape", "quant", "checkpointing", "tokens", "fits", "why", "seconds", "tokens_per_s", "tflops",
    "product_tflops", "share", "share_goal", "peak_gib", "device_gib", "least_gib", "limit_gib", "loss_first",
    "loss_last", "gpu", "cuda", "torch", "triton", "bitsandbytes", "date",
)  # fmt: skip


def main() -> int:
    options = _options()
    trial = options.device == "cpu"
    if not trial and not _has_cuda():
        print("These rows need a GPU with CUDA and a torch that was built for it; torch finds none here.")
        print("`--device cpu` tries the commands on tiny shapes.")
        return 2
    raw = options.to or (RAW / "gpu" / "trial" if trial else RAW / "gpu")
    try:
        rows = chosen(options.rows, trial=trial)
    except ValueError as error:
        print(error)
        return 2
    done = set() if options.again else {run["row"] for run in raw_runs(raw)}
    failed = 0
    for row in rows:
        if options.list:
            state = "done" if row.name in done else "to do"
            print(f"{state:6}{row.group:6}{row.name:24}{row.least_gib:8.1f} GiB")
        elif row.name not in done:
            failed += not _carried_out(row, options.device, raw)
    if not options.list:
        write_csv(raw / "results.csv", KEY, FACTS, raw_runs(raw))
        print(f"wrote {raw / 'results.csv'}")
    return min(failed, 1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rows", nargs="*", help="parts of names or groups of rows; all by default")
    parser.add_argument("--list", action="store_true", help="print the rows and the least memory of each")
    parser.add_argument("--again", action="store_true", help="repeat finished rows")
    parser.add_argument(
        "--device", default="cuda", choices=("cuda", "cpu"), help="cpu: tiny shapes, as a trial"
    )
    parser.add_argument("--to", type=Path, help="the folder of the results instead of runs/bench/gpu")
    return parser.parse_args()


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _carried_out(row: Row, device: str, raw: Path) -> bool:
    """Measure a row in a process of its own and write its raw file; return whether that went well."""
    print(f"{row.group} {row.name}", flush=True)
    words = [sys.executable, str(Path(__file__).with_name("one.py")), row.name, device]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        print(f"  failed with {done.returncode}: what it said is above")
        return False
    found = json.loads(done.stdout.splitlines()[-1])
    facts = described(row) | found | versions()
    write_raw(raw / f"{row.name}.json", {key: value for key, value in facts.items() if value is not None})
    print("  " + worded(facts), flush=True)
    return True


def described(row: Row) -> dict[str, Any]:
    """Return what a row is, as columns."""
    return {
        "group": row.group, "row": row.name, "shape": row.shape, "quant": row.quant or "none",
        "checkpointing": row.checkpointing, "limit_gib": row.limit_gib or None,
        "share_goal": row.share or None,
    }  # fmt: skip


def versions() -> dict[str, Any]:
    """Return with what a row was measured, as columns."""
    found = {}
    for package in ("torch", "triton", "bitsandbytes"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found | {"date": date.today().isoformat()}


def worded(facts: dict[str, Any]) -> str:
    """Return a finished row as a line.

    >>> worded({"fits": False, "why": "memory ran out"})
    'does not fit: memory ran out'
    """
    if not facts["fits"]:
        return f"does not fit: {facts.get('why', 'not even the shortest row')}"
    line = f"{facts['tokens']:,} tokens a step, {facts['tokens_per_s']:,.0f} tokens/s"
    line += f", peak {facts['peak_gib']:.2f} GiB (least {facts['least_gib']:.2f})"
    return line + (f", {facts['share']:.0%} of the product rate" if facts.get("share") else "")


if __name__ == "__main__":
    sys.exit(main())
