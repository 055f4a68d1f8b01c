"""What integrity costs: loading a model of 1.1 billion weights, and the commits of a run.

    python benchmarks/reliability/cost.py                  both; on a quiet machine, some minutes
    python benchmarks/reliability/cost.py load --rounds 9
    python benchmarks/reliability/cost.py commit

Loading: a folder in bf16 that Graft has committed, so that there are digests to compare, is loaded without
the comparison, with it for the first time, and with it once more. Each is a process of its own, in turns;
the files are in the page cache, where hashing costs most beside reading. Goals: at most 15 % for the first
load, 2 % afterwards.

Commits: a run of LoRA on the embedded model with a commit at the default interval. The seconds of its commits
are those inside `storage.commit`, validation and rotation, of all its seconds. Goal: at most 2 %.

Both print one line of JSON a measurement, then the medians. The load of the machine is printed first.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "common"))
sys.path.append(str(Path(__file__).parents[1] / "speed"))
import internals
import shapes
import weights

WAYS = ("without", "first", "afterwards")
GOALS = {"first": 15.0, "afterwards": 2.0, "commit": 2.0}
STEPS = 300  # of the run whose commits are measured: three at the default interval


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", help="both by default")
    parser.add_argument("--shape", default="1.1b", choices=shapes.SHAPES, help="of the loaded model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--models", type=Path, default=Path(__file__).resolve().parents[2] / "runs" / "models"
    )
    parser.add_argument("--one", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return load_once(*options.one)
    print(f"load {os.getloadavg()[0]:.2f}")
    if "load" in options.what or not options.what:
        loads(options)
    if "commit" in options.what or not options.what:
        commits(options)


def loads(options: argparse.Namespace) -> None:
    """Load the folder in all ways, in turns; print each and what the checks cost."""
    folder = committed(weights.model(shapes.SHAPES[options.shape], options.models), options.models)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as cache:
        for number in range(options.rounds):
            home = Path(cache, str(number))  # what was hashed before is forgotten
            for way in WAYS:
                words = [sys.executable, __file__, "--one", way, str(folder)]
                environment = os.environ | {"GRAFT_CACHE": str(home)}
                done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
                seconds[way].append(json.loads(done.stdout.splitlines()[-1])["seconds"])
                print(json.dumps({"way": way, "round": number, "seconds": seconds[way][-1]}), flush=True)
    plain = statistics.median(seconds["without"])
    print(f"without checks {plain:.3f} s")
    for way in WAYS[1:]:
        pairs = zip(seconds[way], seconds["without"], strict=True)
        cost = 100 * statistics.median(checked / bare - 1 for checked, bare in pairs)
        print(f"{way}: {statistics.median(seconds[way]):.3f} s, {cost:+.1f} % (goal {GOALS[way]:g} %)")


def committed(source: Path, models: Path) -> Path:
    """Return a folder of the same files with their digests beside them, as Graft writes it."""
    target = models / f"{source.name}-committed"
    if not (target / "manifest.json").exists():

        def fill(folder: Path) -> None:
            for path in source.iterdir():
                if path.is_file() and path.suffix in (".json", ".safetensors"):
                    os.link(path, folder / path.name)

        internals.commit(target, fill)
    return target


def load_once(way: str, folder: str) -> None:
    """Load a model and print the seconds, without the imports."""
    import contextlib

    import graft

    graft.load("seedling")  # everything is imported, the kernels are tried
    began = time.perf_counter()
    with internals.as_they_are() if way == "without" else contextlib.nullcontext():
        graft.load(folder, dtype="bf16")
    print(json.dumps({"seconds": time.perf_counter() - began}))


def commits(options: argparse.Namespace) -> None:
    """Train with a commit at the default interval; print which share of the time the commits take."""
    import graft

    spent: list[float] = []
    checkpoints = internals.Checkpoints
    real = checkpoints.save

    def save(*arguments: Any, **keywords: Any) -> Any:
        began = time.perf_counter()
        try:
            return real(*arguments, **keywords)
        finally:
            spent.append(time.perf_counter() - began)

    checkpoints.save = save
    with tempfile.TemporaryDirectory() as folder:
        recipe = {
            "model": "seedling", "dtype": "fp32", "method": {"name": "lora", "r": 16},
            "data": {"train": "seedling:descriptions", "eval": None, "max_length": 192},
            "train": {"max_steps": STEPS, "batch_size": 8, "samples": []}, "output": str(Path(folder, "run")),
        }  # fmt: skip
        began = time.perf_counter()
        graft.run(recipe)
        whole = time.perf_counter() - began
        files = [path for path in Path(folder, "run", "checkpoints").rglob("*") if path.is_file()]
        saved = sum(path.stat().st_size for path in files)
    share = 100 * sum(spent) / whole
    print(json.dumps({"commits": len(spent), "seconds": sum(spent), "of": whole, "kept_bytes": saved}))
    print(f"commits: {share:.2f} % of the run (goal {GOALS['commit']:g} %)")


if __name__ == "__main__":
    main()
