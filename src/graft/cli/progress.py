"""Print the progress of a run: a line per `log_every` steps, and bars if stderr is a terminal."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graft.cli.data_report import report_lines
from graft.cli.say import folded, noted, print_markup, talk
from graft.runs import telling
from graft.runs.surfaces import Task, Terminal

if TYPE_CHECKING:
    from graft.recipe import Recipe


class Progress:
    """An observer of a run (see `graft.Observer`) that prints on stderr."""

    def __init__(self, recipe: "Recipe") -> None:
        self._terminal = Terminal() if sys.stderr is not None and sys.stderr.isatty() else None
        self._trains = False
        self._steps = self._steps_of(recipe)

    @staticmethod
    def _steps_of(recipe: "Recipe") -> telling.Steps:
        return telling.Steps(recipe.train.log_every, telling.counts_of(recipe.stage_name))

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self._hide()

    def say(self, text: str) -> None:
        """Print a line, above the bars if there are any. A run goes on without its terminal."""
        self._terminal.say(folded(text)) if self._terminal is not None else talk(text)

    def _show(self, *tasks: Task) -> None:
        if self._terminal is not None:
            left = [telling.left(self._steps.left)] if self._steps.done else []
            now = [Task("train", self._steps.done, self._steps.total, left)] if self._trains else []
            self._terminal.show([*now, *tasks])

    def _hide(self) -> None:
        self._trains = False
        if self._terminal is not None:
            self._terminal.close()

    def doing(self, what: str, done: int, total: int) -> None:
        """Show it on a terminal; in a pipe there is a line where it is over."""
        self._show(Task(what, done, total))

    def start(self, plan: dict[str, Any]) -> None:
        self._steps.start(plan)
        self._trains = self._steps.done < self._steps.total
        self.say(telling.train_line(plan))
        self._show()

    def resumed(self, step: int) -> None:
        self.say(f"resumed from step {step}")

    def step(self, record: dict[str, Any]) -> None:
        if self._steps.take(record):
            self.say(self._steps.line(record))
        self._show()

    def wrote(self, done: int, total: int) -> None:
        """Show on a terminal how many answers are written; elsewhere the step's line tells of them."""
        self._show(*([Task("writing answers", done, total)] if done < total else []))

    def evaluated(self, record: dict[str, Any]) -> None:
        self.say(telling.eval_line(record))
        self._show()

    def sampled(self, texts: Sequence[str]) -> None:
        for text in texts:
            self.say(telling.sample_line(text))
        self._show()

    def saved(self, path: Path) -> None:
        self.say(f"saved   {path}")

    def warn(self, text: str) -> None:
        self.say(f"warning {text}")

    def stage(self, name: str, number: int, count: int, recipe: "Recipe") -> None:
        self._steps = self._steps_of(recipe)
        self.say(f"stage {number} of {count}   {name}")

    def begin(self, facts: dict[str, Any]) -> None:
        self.say(telling.base_line(facts))
        self.say(telling.adapter_line(facts))

    def note(self, text: str) -> None:
        if text not in noted:  # the plan may have said it before the run did
            noted.add(text)
            self.say(f"note    {text}")

    def scoring(self) -> None:
        self.say("eval    scoring the held-out rows, before and after training")

    def data(self, report: Any) -> None:
        self._hide()  # the report is printed beside it
        for line in report_lines(report, self._terminal is not None):
            print_markup(line) if self._terminal is not None else talk(line)

    def finished(self, record: dict[str, Any]) -> None:
        self._hide()
