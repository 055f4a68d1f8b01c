"""Measure how long each verb of the command line lets one wait, on the embedded model with one thread.

    python benchmarks/wait/run.py [--only train eval] [--demo] [--source OTHER/src] [--json FILE]

Each verb runs in a process of its own, with its output in a pipe. Its columns: seconds from start to end,
seconds of the processor, the most memory in MiB; seconds until the first character, of the clock and of the
processor; and the longest time without a character. `--source` measures another checkout, for a comparison.
The seconds of the clock need an idle machine; those of the processor are little more under load.
"""

import argparse
import json
import math
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "src"
COMMAND = "import sys; sys.argv = ['graft', *{words!r}]; from graft.cli import main; main()"
TRAIN = (
    "train --model seedling --data seedling:descriptions --method qlora --output run --train.max_steps=20 "
    "--data.limit=200 --evaluate.limit=40"
)
# In an order in which each finds what it needs; None: a program instead of a verb.
VERBS = {
    "help": "--help",
    "methods": "methods",
    "doctor": "doctor",
    "plan": "plan --model seedling --data seedling:descriptions --method qlora",
    "data show": "data show seedling:descriptions",
    "train, 20 steps": TRAIN,
    "eval": "eval run",
    "chat --prompt": "chat run --prompt Hello --max-new-tokens 16",
    "compare": "compare run seedling --limit 4 --max-new-tokens 16",
    "merge": "merge run merged",
    "export hf": "export run hf --to hf",
    "export gguf": "export run gguf --to gguf",
    "export peft": "export run peft --to peft",
    "verify": "verify hf",
    "quantize": "quantize seedling packed",
    "convert": "convert hf adapter --base seedling",
    "ask": "ask rows.jsonl --adapters . --model seedling --max-new-tokens 16 --out answered.jsonl",
    "judge": "judge one.jsonl two.jsonl --by rule:shorter --out judged.jsonl",
    "rank": "rank judged.jsonl",
    "runs": "runs .",
    "sweep, 2 runs": f"{TRAIN} train.seed=0,1".replace("train ", "sweep ", 1).replace("run", "runs"),
    "serve": "serve seedling --port 0",
}
DEMO = {"demo": "demo --folder demo"}
NEEDS = {
    "train": ("eval", "chat", "compare", "merge", "export", "verify", "convert", "ask"),
    "export hf": ("verify", "convert"),
    "judge": ("rank",),
}
ENDLESS = {"serve": b"listens"}  # verbs that end when they are told to: when they have said this
FILES = {
    "rows.jsonl": [{"prompt": f"name: Silver Otter {i}", "adapter": ("run", "")[i % 2]} for i in range(4)],
    "one.jsonl": [{"prompt": f"Question {i}", "answer": "yes, " * i} for i in range(1, 9)],
    "two.jsonl": [{"prompt": f"Question {i}", "answer": "no, " * (9 - i)} for i in range(1, 9)],
}


def measure(words: list[str], folder: Path, source: Path) -> dict[str, float] | None:
    """Run one command line in a folder; return its seconds, memory and silences; None for an unknown verb."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(source),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "GRAFT_CACHE": str(folder / "cache"),
        "PYTHONUNBUFFERED": "1",
    }
    began = last = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-c", COMMAND.format(words=words)],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert child.stdout is not None
    said = b""
    first, first_cpu, longest = None, 0.0, 0.0
    while True:
        select.select([child.stdout], [], [])
        piece = os.read(child.stdout.fileno(), 1 << 16)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
        if not piece:
            break
        if first is None:
            first, first_cpu = now - began, cpu_of(child.pid)
        said += piece
        if ENDLESS.get(words[0], said + b".") in said:
            child.terminate()
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.perf_counter() - began
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode == 2 and b"no such command" in said.lower():
        return None
    if child.returncode and words[0] not in ENDLESS:
        raise SystemExit(f"graft {' '.join(words)} ended with {child.returncode}:\n{said.decode()[-2000:]}")
    return {
        "wall": wall,
        "cpu": usage.ru_utime + usage.ru_stime,
        "peak": usage.ru_maxrss / 1024,
        "first": first if first is not None else wall,
        "first_cpu": first_cpu,
        "silent": longest,
    }


def cpu_of(process: int) -> float:
    """Return the seconds of the processor that a running process has taken; NaN where Linux does not tell."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return float("nan")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def table(rows: dict[str, dict[str, float]]) -> str:
    """Return the measurements as a table of Markdown."""
    head = ["verb", "wall s", "CPU s", "peak MiB", "first character s", "CPU s until it", "longest silence s"]
    lines = [head, ["---"] * len(head)]
    for name, row in rows.items():
        cells = {key: f"{row[key]:.2f}" if row[key] < 1 else f"{row[key]:.1f}" for key in row}
        cells["peak"] = f"{row['peak']:.0f}"
        columns = ("wall", "cpu", "peak", "first", "first_cpu", "silent")
        lines.append([name, *(cells[column] for column in columns)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    """Measure the verbs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="VERB", help="verbs by the beginning of their names")
    parser.add_argument("--demo", action="store_true", help="measure graft demo as well")
    parser.add_argument("--source", type=Path, default=SOURCE, help="the src folder to measure")
    parser.add_argument("--json", type=Path, help="also write the measurements to this file")
    chosen = parser.parse_args()
    verbs = VERBS | (DEMO if chosen.demo else {})
    only = tuple(chosen.only or [""])
    rows: dict[str, dict[str, float]] = {}
    wanted = {name for name in verbs if name.startswith(only)}
    needed = {
        name for name in verbs for before, after in NEEDS.items()
        if name.startswith(before) and any(one.startswith(after) for one in wanted)
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for name, written in FILES.items():
            Path(folder, name).write_text("".join(f"{json.dumps(row)}\n" for row in written))
        for name in [name for name in verbs if name in wanted | needed]:
            row = measure(verbs[name].split(), Path(folder), chosen.source.resolve())
            if row is not None:
                rows[name] = row
            print(f"{name:<16} {row['wall'] if row else math.nan:6.1f} s", file=sys.stderr, flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=2) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
