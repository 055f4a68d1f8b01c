"""Print the progress of a run: a line per `log_every` steps, and a bar if stderr is a terminal."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graft.cli.data_report import report_lines
from graft.cli.say import noted, print_markup, talk
from graft.recipe.stages import stage_cards
from graft.sizes import MIB, duration, number, size

if TYPE_CHECKING:
    from graft.recipe import Recipe


class Progress:
    """An observer of a run (see graft.runs.run.RunObserver) that prints on stderr."""

    def __init__(self, recipe: "Recipe") -> None:
        self.every = recipe.train.log_every
        self.counts = stage_cards()[recipe.stage_name].counts
        self.total = 0
        self.done = 0
        self._bar: Any = None
        self._began = time.perf_counter()
        self._first = 0  # steps done before this start

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            talk(text)

    def start(self, plan: dict[str, Any]) -> None:
        self.total = plan["steps"]
        self.done = self._first = plan.get("done", 0)
        self._began = time.perf_counter()
        self.say(f"train   {self.total:,} steps, {number(plan['trained'])} numbers trained")
        if sys.stderr.isatty() and self.done < self.total:
            self._bar = _bar(self.done, self.total)

    def resumed(self, step: int) -> None:
        self.say(f"resumed from step {step}")

    def step(self, record: dict[str, Any]) -> None:
        self.done = record["step"]
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self.done)
        if self.done % self.every == 0 or self.done in (1, self.total):
            self.say(self._line(record))

    def _line(self, record: dict[str, Any]) -> str:
        """Return a step's line: loss, learning rate, speed, memory, time left."""
        pace = (time.perf_counter() - self._began) / max(1, self.done - self._first)
        speed = f"{record['tokens_per_s']:,.0f} {self.counts}/s"
        loss = f"loss {record['loss']:.4f}" if "loss" in record else "skipped: not finite"
        return (
            f"step {self.done:5d}   {loss}   lr {record['lr']:.1e}   {speed}   "
            f"{size(record['memory_mb'] * MIB)}   eta {duration(pace * (self.total - self.done))}"
        )

    def evaluated(self, record: dict[str, Any]) -> None:
        scores = {key.removeprefix("eval_"): v for key, v in record.items() if key.startswith("eval_")}
        words = (f"{name} {v:,.0f}" if name == "tokens" else f"{name} {v:.4f}" for name, v in scores.items())
        self.say(f"eval {record['step']:5d}   {'   '.join(words)}")

    def sampled(self, texts: Sequence[str]) -> None:
        for text in texts:
            self.say(f"sample  {' '.join(text.split())[:110]}")

    def saved(self, path: Path) -> None:
        self.say(f"saved   {path}")

    def warn(self, text: str) -> None:
        self.say(f"warning {text}")

    def begin(self, facts: dict[str, Any]) -> None:
        share = 100 * facts["trained"] / facts["parameters"]
        self.say(f"base    {facts['base']}   {facts['parameters']:,} parameters   {facts['stored']}")
        methods = " + ".join(facts["methods"])
        trained = f"{facts['trained']:,} trained ({share:.2g} %)"
        self.say(f"adapter {methods} on {facts['sites']} sites   {trained}")

    def note(self, text: str) -> None:
        if text not in noted:  # the plan may have said it before the run did
            noted.add(text)
            self.say(f"note    {text}")

    def scoring(self) -> None:
        self.say("eval    scoring the held-out rows, before and after training")

    def data(self, report: Any) -> None:
        colour = sys.stderr.isatty()
        for line in report_lines(report, colour):
            print_markup(line) if colour else talk(line)

    def finished(self, record: dict[str, Any]) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _bar(done: int, total: int) -> Any:
    """Return a started progress bar."""
    from rich.console import Console  # for terminals only: a pipe does not need rich
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("train  "), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Bar(*columns, console=Console(stderr=True), transient=True)
    bar.add_task("train", total=total, completed=done)
    bar.start()
    return bar
