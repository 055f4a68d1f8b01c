"""Write RESULTS.md and losses.svg from results.csv and curves.csv.

python benchmarks/pretraining/table.py
python benchmarks/pretraining/table.py --raw runs/bench/pretraining/trial --to /tmp/trial
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "common"))
import curves
import page
from columns import CURVES, RESULTS
from page import markdown, measured_on

COMMANDS = """\
    python benchmarks/pretraining/run.py
    python benchmarks/collect.py pretraining
    python benchmarks/pretraining/table.py"""
HEADER = (
    "objective", "model", "trained", "steps", "tokens learnt", "held-out loss before", "after", "perplexity",
    "s",
)  # fmt: skip


def main() -> None:
    options = page.options(__doc__, Path(__file__).parent)
    runs, losses = (t.of(options.raw) if options.raw else t.read() for t in (RESULTS, CURVES))
    (options.to / "losses.svg").write_text(curves.svg(runs, losses), encoding="utf-8")
    lines = [
        [
            run["objective"], run["model"], f"{run['trained']:,}", str(run["steps"]), f"{run['tokens']:,}",
            f"{run['loss_before']:.3f}", f"{run['loss_after']:.3f}", f"{run['perplexity']:.1f}",
            f"{run['train_s']:.0f}" if "train_s" in run else "",
        ]
        for run in runs
    ]  # fmt: skip
    text = f"""# Pretraining on books

{COMMANDS}

{measured_on(runs)} Text and models: [README](README.md).

{markdown([HEADER, *lines])}
![training and held-out loss by step](losses.svg)
"""
    page.write(options.to / "RESULTS.md", text)


if __name__ == "__main__":
    main()
