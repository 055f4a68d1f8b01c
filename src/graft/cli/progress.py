"""Print the progress of a run: a line per `log_every` steps, and a bar if stderr is a terminal."""

import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graft.cli.data_report import report_lines
from graft.cli.say import noted, print_markup, talk
from graft.sizes import MIB, duration, number, size

if TYPE_CHECKING:
    from graft.recipe import Recipe

SPEEDS = {"tok": "tokens_per_s", "rows": "rows_per_s"}  # by what a stage counts: of timing.jsonl


class Progress:
    """An observer of a run (see graft.runs.hear.RunObserver) that prints on stderr."""

    def __init__(self, recipe: "Recipe") -> None:
        self._bar: Any = None
        self._show(recipe)

    def _show(self, recipe: "Recipe") -> None:
        """Begin with the steps of a recipe."""
        from graft.recipe.stages import stage_cards  # late: it brings pydantic, which no --help needs

        self.every = recipe.train.log_every
        self.counts = stage_cards()[recipe.stage_name].counts
        self.total = 0
        self.done = 0
        self._began = time.perf_counter()
        self._first = 0  # steps done before this start
        self._said = 0  # the last step that had a line
        self._writes = False  # whether the stage writes the answers that it learns from
        self._writing: Any = None  # the bar's task while answers are written

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.stop()
            self._bar = None

    def say(self, text: str) -> None:
        """Print a line, above the bar if there is one. A run goes on without its terminal."""
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            talk(text)

    def start(self, plan: dict[str, Any]) -> None:
        self.total = plan["steps"]
        self.done = self._first = plan.get("done", 0)
        self._began = time.perf_counter()
        self.say(f"train   {self.total:,} steps, {number(plan['trained'])} trainable parameters")
        if sys.stderr.isatty() and self.done < self.total:
            self._bar = _bar(self.done, self.total)

    def resumed(self, step: int) -> None:
        self.say(f"resumed from step {step}")

    def step(self, record: dict[str, Any]) -> None:
        self.done = record["step"]
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self.done)
        if self._due(record):
            self._said = self.done
            self.say(self._line(record))

    def wrote(self, done: int, total: int) -> None:
        """Show on a terminal how many answers are written; elsewhere the step's line tells of them."""
        if self._bar is None:
            return
        if self._writing is None:
            self._writing = self._bar.add_task("write  ", total=total)
        self._bar.update(self._writing, completed=done, total=total)
        if done == total:  # the next answers have a time of their own
            self._bar.remove_task(self._writing)
            self._writing = None

    def _due(self, record: dict[str, Any]) -> bool:
        """Return whether a step has a line: every so many steps, of a stage that writes its own answers at
        the next step that tells of new ones."""
        self._writes |= "rollout_seconds" in record
        if self.done in (1, self.total):
            return True
        if self._writes:
            return "rollout_seconds" in record and self.done - self._said >= self.every
        return self.done % self.every == 0

    def _line(self, record: dict[str, Any]) -> str:
        """Return a step's line: answers, loss, learning rate, speed, memory, time left."""
        pace = (time.perf_counter() - self._began) / max(1, self.done - self._first)
        words = [f"step {self.done:5d}", *_of_answers(record)]
        if "left_out" in record:
            words += [f"left out: {record['left_out']}"]
        else:
            learning = max(record["seconds"] - record.get("rollout_seconds", 0.0), 1e-9)
            speed = record[SPEEDS[self.counts]] * record["seconds"] / learning
            words += [
                f"loss {record['loss']:.4f}" if "loss" in record else "skipped: not finite",
                f"lr {record['lr']:.1e}",
                f"{speed:,.0f} {self.counts}/s",
            ]
        words += [size(record["memory_mb"] * MIB), f"eta {duration(pace * (self.total - self.done))}"]
        return "   ".join(words)

    def evaluated(self, record: dict[str, Any]) -> None:
        scores = {key.removeprefix("eval_"): v for key, v in record.items() if key.startswith("eval_")}
        words = (
            f"{name} {v:,.0f}" if name in ("tokens", "answers") else f"{name} {v:.4f}"
            for name, v in scores.items()
        )
        self.say(f"eval {record['step']:5d}   {'   '.join(words)}")

    def sampled(self, texts: Sequence[str]) -> None:
        for text in texts:
            self.say(f"sample  {' '.join(text.split())[:110]}")

    def saved(self, path: Path) -> None:
        self.say(f"saved   {path}")

    def warn(self, text: str) -> None:
        self.say(f"warning {text}")

    def stage(self, name: str, number: int, count: int, recipe: "Recipe") -> None:
        self._show(recipe)
        self.say(f"stage {number} of {count}   {name}")

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
        self._stop()


def _of_answers(record: dict[str, Any]) -> list[str]:
    """Return what a step's record says of answers that were written before it; nothing where none were."""
    told = {name: round(record[name], 6) + 0.0 for name in ("reward", "kl", "length") if name in record}
    words = [f"{name} {value:.3g}" for name, value in told.items()]
    seconds = record.get("rollout_seconds", 0.0)  # 0: read again, by a run that goes on
    return [*words, f"written in {seconds:.1f} s"] if seconds else words


def _bar(done: int, total: int) -> Any:
    """Return a started progress bar."""
    from rich.console import Console  # for terminals only: a pipe does not need rich
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Bar(*columns, console=Console(stderr=True), transient=True)
    bar.add_task("train  ", total=total, completed=done)
    bar.start()
    return bar
