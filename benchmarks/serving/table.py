"""Write RESULTS.md from the raw runs.

python benchmarks/serving/table.py
python benchmarks/serving/table.py --raw runs/bench/serving/trial --to /tmp/trial
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "common"))
import page
import results
import throughput


def main() -> None:
    options = page.options(__doc__, Path(__file__).parent)
    runs = results.raw_runs(options.raw or results.RAW / "serving")
    page.write(options.to / "RESULTS.md", "\n".join(["# A server under load\n", *parts(runs)]))


def parts(runs: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a section for each run."""
    if not runs:
        yield "Not measured on a quiet machine yet. The commands are in [README.md](README.md).\n"
    for run in runs:
        machine = run["machine"]
        place = f"{machine['cpu']}, {machine['cores']} cores; {machine['date']}"
        if "load" in run:
            place += f"; {run['threads']} threads; load {max(run['load']):.1f}"
        yield f"{SECTIONS[run['what']](run)}\n{place}.\n"


def many(run: dict[str, Any]) -> str:
    return f"""## {run["adapters"]} adapters of five kinds on {run["model"]} as NF4

- Answers that differ from those of the adapter alone: {len(run["other"])}.
- Log-probabilities differ by at most {run["apart"]:.1e}.
- Tensors {run["tensors_mib"]:.1f} MiB, files {run["files_mib"]:.1f} MiB.
- Memory of the server {run["rss_before_mib"]:.0f} MiB, with all adapters {run["rss_after_mib"]:.0f} MiB:
{run["kib_each"]:.0f} KiB each.
"""


def soak(run: dict[str, Any]) -> str:
    return f"""## {run["requests"]:,} requests on {run["adapters"]} models that come, go and change

- Wrong {run["wrong"]}, failed {run["failed"]}, right {run["right"]:,}. Clients that left: {run["left"]:,}.
- Refused {run["refused"]:,}: unloaded at the time, or changed on the disk and not yet loaded by name.
- Replaced {run["replaced"]:,} times, unloaded {run["unloaded"]:,}, loaded again {run["loaded"]:,}.
- At the end: {run["slots"]:.0f} slots taken, {run["users"]:.0f} adapters held, {run["texts"]:.0f} texts.
- Memory {run["rss_warm_mib"]:.0f} MiB when warm, {run["rss_end_mib"]:.0f} at the end: {run["growth"]:+.1%}.
- {run["seconds"]:.0f} s.
"""


def hold(run: dict[str, Any]) -> str:
    return f"""## Loading an adapter on {run["model"]} while a text is written

The longest gap between two pieces of a text is {run["plain"]:.1f} ms, and {run["loaded"]:.1f} ms while
adapters of five kinds are loaded. A load takes {run["took"]:.1f} ms.
"""


def rates(run: dict[str, Any]) -> str:
    return "\n".join([f"## One stream and eight on {run['model']}\n", *throughput.lines(run), ""])


SECTIONS = {"many": many, "soak": soak, "hold": hold, "throughput": rates}

if __name__ == "__main__":
    main()
