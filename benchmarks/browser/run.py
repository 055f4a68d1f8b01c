"""Repeat every scenario of the studio's pages in a real browser, and count those that ever failed.

    python benchmarks/browser/run.py [--repeats 50] [--processes 2]

Each repeat is a run of its own of pytest over the files of scenarios. What each scenario did is kept in
runs/bench/browser, so that the same command goes on where it stopped. Fails if any scenario failed in any
repeat of this commit.
"""

import argparse
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as Xml
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "common"))
import results

ROOT = Path(__file__).parents[2]
RAW = results.RAW / "browser"
SCENARIOS = sorted(map(str, (ROOT / "tests" / "serve" / "studio").glob("test_*_page.py")))
OUTCOMES = ("failure", "error", "skipped")  # what a scenario may be instead of passed, in JUnit's words


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="browsers at a time")
    options = parser.parse_args()
    commit = said("git", "rev-parse", "--short", "HEAD")
    for number in range(options.repeats):
        path = RAW / f"{commit}-{number:03}.json"
        if not path.exists():
            facts = {"commit": commit, "processes": options.processes, **repeat(options.processes)}
            results.write_raw(path, facts)
            print(f"{number + 1:3}  {facts['seconds']:.0f} s  " + in_words([facts]), flush=True)
    runs = [run for run in results.raw_runs(RAW) if run["commit"] == commit]
    print(f"{len(runs)} repeats of {commit}: {in_words(runs)}")
    bad = [name for run in runs for name, outcome in run["scenarios"].items() if outcome in OUTCOMES[:2]]
    for name in sorted(set(bad)):
        print(f"  failed {bad.count(name)} times: {name}")
    return 1 if bad else 0


def repeat(processes: int) -> dict[str, Any]:
    """Run every scenario once; return what each did, and the seconds of all."""
    report = RAW.parent / "browser.xml"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    words = ["-q", "--numprocesses", str(processes), "--dist", "loadfile", f"--junitxml={report}"]
    load, begun = os.getloadavg()[0], time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, *SCENARIOS], cwd=ROOT, capture_output=True, text=True
    )
    took = time.monotonic() - begun
    if not report.exists():
        raise SystemExit(f"pytest ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    scenarios = {
        f"{case.get('classname')}::{case.get('name')}": next(
            (outcome for outcome in OUTCOMES if case.find(outcome) is not None), "passed"
        )
        for case in Xml.parse(report).iter("testcase")
    }
    said_last = done.stdout[-4000:] if done.returncode else ""
    return {
        "scenarios": scenarios, "seconds": took, "load": [load, os.getloadavg()[0]], "said": said_last,
        "machine": results.machine(),
    }  # fmt: skip


def in_words(runs: list[dict[str, Any]]) -> str:
    """Return how many scenarios passed, failed and were left out, in words."""
    seen = [outcome for run in runs for outcome in run["scenarios"].values()]
    failed = sum(seen.count(outcome) for outcome in OUTCOMES[:2])
    return f"{seen.count('passed'):,} passed, {failed} failed, {seen.count('skipped')} left out"


def said(*words: str) -> str:
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
