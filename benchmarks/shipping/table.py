"""RESULTS.md from results/*.json: every form that a trained model is shipped in, beside what was trained.

    python benchmarks/shipping/table.py

"What is lost" is measured against the training form of the same run, seed by seed.
"""

import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "common"))
import grid
from page import markdown, measured_on, spread

HERE = Path(__file__).parent
COMMAND = "python benchmarks/shipping/run.py --jobs 2; python benchmarks/shipping/table.py"
QUALITY = {"bleu": "BLEU", "coverage": "coverage, %"}
TITLES = {
    grid.QLORA: "QLoRA: LoRA beside NF4",
    grid.QALORA: "QA-LoRA beside int4, by GPTQ",
    grid.QALORA2: "QA-LoRA beside int2, by GPTQ",
}
MINE, PEERS = f"{grid.BITS[grid.QALORA2]}, merged", f"{grid.BITS[grid.QALORA2]}, GPTQ"  # the two-bit models
DEVIATIONS = 2

Run = dict[str, Any]


def main() -> None:
    runs = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted((HERE / "results").glob("*.json"))
    ]
    runs.sort(key=lambda run: (place(run), grid.LINES.index(run["cell"]["line"]), run["cell"]["seed"]))
    page = [head(runs)]
    for _, found in groupby(runs, key=place):
        page.append(section(list(found)))
    (HERE / "RESULTS.md").write_text("\n".join(page), encoding="utf-8")


def place(run: Run) -> int:
    """Where the run's section stands: as in the grid."""
    return [setting.base for setting in grid.SETTINGS].index(run["cell"]["base"])


def head(runs: Sequence[Run]) -> str:
    return f"""# In few bits, from training to the shipped file

    {COMMAND}

{measured_on(runs)}
Loss: nats per token of the test's references. "More loss" is against the form that was trained, of the same seed. ± is
the standard deviation over the seeds. Size: of all tensors, the adapter included where it stays beside; of a GGUF, the
file. Of a GGUF the loss is Graft's, which reads the file back; its answers and their speed are llama.cpp's. Tokens a
second: greedy, one answer at a time, median of the seeds, with other work on the machine: a rough measure. Packed
weights are multiplied by Graft's reference kernels, which unpack them in every forward.
"""


def section(runs: list[Run]) -> str:
    """One base with its task."""
    cell = runs[0]["cell"]
    quality = next(name for name in QUALITY if name in next(iter(runs[0]["forms"].values())))
    parts = [
        f"## {cell['task']} on {cell['base']}\n",
        f"{cell['steps']} steps of {cell['batch_size']} rows.\n",
    ]
    lines = {line: list(found) for line, found in groupby(runs, key=lambda run: run["cell"]["line"])}
    for line, found in lines.items():
        parts += [
            f"### {TITLES[line]}\n",
            f"r {found[0]['cell']['r']}, peak rate {found[0]['cell']['lr']:g}.\n",
        ]
        parts.append(markdown([header(quality), *rows(found, quality)]))
    if grid.QALORA2 in lines and grid.QLORA in lines:
        parts += ["### Two bits\n", two_bits(lines[grid.QALORA2], lines[grid.QLORA], quality)]
    return "\n".join(parts)


def header(quality: str) -> list[str]:
    return ["form", "loss", "more loss", QUALITY[quality], "KiB", "tokens/s"]


def rows(runs: Sequence[Run], quality: str) -> Iterator[list[str]]:
    """A line for each form."""
    trained = next(iter(runs[0]["forms"]))
    for form in runs[0]["forms"]:
        found = [run["forms"][form] for run in runs]
        more = [run["forms"][form]["loss"] - run["forms"][trained]["loss"] for run in runs]
        yield [
            form, spread([f["loss"] for f in found], 4), "" if form == trained else spread(more, 4),
            spread([f[quality] for f in found]), f"{statistics.mean(f['bytes'] for f in found) / 1024:,.0f}",
            f"{statistics.median(f['tokens_per_s'] for f in found):,.0f}",
        ]  # fmt: skip


def two_bits(mine: Sequence[Run], peers: Sequence[Run], quality: str) -> str:
    """Whether QA-LoRA beats QLoRA + GPTQ where both end in two bits, by more than two standard deviations."""
    said = []
    for name, title, sign in (("loss", "loss", -1), (quality, QUALITY[quality], 1)):
        ours, theirs = (
            [run["forms"][form][name] for run in runs] for runs, form in ((mine, MINE), (peers, PEERS))
        )
        gain = sign * (statistics.mean(ours) - statistics.mean(theirs))
        noise = (
            max(statistics.stdev(side) for side in (ours, theirs))
            if min(len(ours), len(theirs)) > 1
            else float("nan")
        )
        verdict = "more" if gain > DEVIATIONS * noise else "NOT more"
        said.append(
            f"- {title}: QA-LoRA {spread(ours, 3)}, QLoRA + GPTQ {spread(theirs, 3)}: better by {gain:.3f}, "
            f"{verdict} than {DEVIATIONS} standard deviations (the larger of both, {noise:.3f})"
        )
    return "\n".join(said) + "\n"


if __name__ == "__main__":
    main()
