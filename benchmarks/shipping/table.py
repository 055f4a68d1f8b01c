"""Write RESULTS.md from results.csv: every form that a trained model is shipped in, next to what was trained.

    python benchmarks/shipping/table.py
    python benchmarks/shipping/table.py --raw runs/bench/shipping/trial --to /tmp/trial

"More loss" is measured against the form that was trained, seed by seed.
"""

import statistics
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "common"))
import grid
import page
from columns import RESULTS
from page import markdown, measured_on, spread
from results import Row as Run

COMMANDS = """\
    python benchmarks/shipping/run.py
    python benchmarks/collect.py shipping
    python benchmarks/shipping/table.py"""
QUALITY = {"bleu": "BLEU", "coverage": "coverage, %"}
TITLES = {
    grid.QLORA: "QLoRA: LoRA on an NF4 base",
    grid.QALORA: "QA-LoRA on an int4 base, by GPTQ",
    grid.QALORA2: "QA-LoRA on an int2 base, by GPTQ",
}
MINE, PEERS = f"{grid.BITS[grid.QALORA2]}, merged", f"{grid.BITS[grid.QALORA2]}, GPTQ"  # the two-bit models
DEVIATIONS = 2


def main() -> None:
    options = page.options(__doc__, Path(__file__).parent)
    runs = RESULTS.of(options.raw) if options.raw else RESULTS.read()
    runs.sort(key=lambda run: (place(run), grid.LINES.index(run["line"]), run["seed"]))
    parts = [head(runs), *(section(list(group)) for _, group in groupby(runs, key=place))]
    page.write(options.to / "RESULTS.md", "\n".join(parts))


def place(run: Run) -> int:
    """Return where the run's section stands: as in the grid."""
    return [setting.base for setting in grid.SETTINGS].index(run["base"])


def head(runs: Sequence[Run]) -> str:
    """Return where, when and with what was measured, and how to read it."""
    return f"""# In few bits, from training to the shipped file

{COMMANDS}

{measured_on(runs)}

- loss: nats per token of the test's references. Graft reads a GGUF file back to measure it.
- more loss: against the form that was trained, at the same seed. ± is the standard deviation over the seeds.
- KiB: all tensors, with the adapter if it is not merged. For GGUF, the file.
- tokens/s: greedy, one answer at a time, median of the seeds. It is a rough measure, as there was other work
  on the machine. Graft's reference kernels unpack packed weights in every forward. GGUF files answer in
  llama.cpp.
"""


def section(runs: list[Run]) -> str:
    """Return one base with its task."""
    first = runs[0]
    quality = next(name for name in QUALITY if name in runs[0])
    parts = [
        f"## {first['task']} on {first['base']}\n",
        f"{first['steps']} steps of {first['batch_size']} rows.\n",
    ]
    lines = {line: list(group) for line, group in groupby(runs, key=lambda run: run["line"])}
    for line, found in lines.items():
        parts += [f"### {TITLES[line]}\n", f"r {first['r']}, peak rate {first['lr']:g}.\n"]
        parts.append(markdown([header(quality), *rows(line, found, quality)]))
    if grid.QALORA2 in lines and grid.QLORA in lines:
        parts += ["### Two bits\n", two_bits(lines[grid.QALORA2], lines[grid.QLORA], quality)]
    return "\n".join(parts)


def header(quality: str) -> list[str]:
    """Return the first line of a table."""
    return ["form", "loss", "more loss", QUALITY[quality], "KiB", "tokens/s"]


def rows(line: str, runs: Sequence[Run], quality: str) -> Iterator[list[str]]:
    """Yield the cells of each form."""
    for form in grid.FORMS[line]:
        of = [run for run in runs if run["form"] == form]
        speeds = [run["tokens_per_s"] for run in of if "tokens_per_s" in run]
        yield [
            form, spread([run["loss"] for run in of], 4),
            spread([run["more_loss"] for run in of if "more_loss" in run], 4),
            spread([run[quality] for run in of]),
            f"{statistics.mean(run['bytes'] for run in of) / 1024:,.0f}",
            f"{statistics.median(speeds):,.0f}" if speeds else "",
        ]  # fmt: skip


def two_bits(mine: Sequence[Run], peers: Sequence[Run], quality: str) -> str:
    """Say whether QA-LoRA beats QLoRA + GPTQ where both end in two bits, by more than two standard
    deviations."""
    lines = []
    for name, title, sign in (("loss", "loss", -1), (quality, QUALITY[quality], 1)):
        ours = [run[name] for run in mine if run["form"] == MINE]
        theirs = [run[name] for run in peers if run["form"] == PEERS]
        gain = sign * (statistics.mean(ours) - statistics.mean(theirs))
        several = min(len(ours), len(theirs)) > 1
        noise = max(map(statistics.stdev, (ours, theirs))) if several else float("nan")
        verdict = "more" if gain > DEVIATIONS * noise else "NOT more"
        lines.append(
            f"- {title}: QA-LoRA {spread(ours, 3)}, QLoRA + GPTQ {spread(theirs, 3)}: better by {gain:.3f}, "
            f"{verdict} than {DEVIATIONS} standard deviations (the larger of both, {noise:.3f})"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
