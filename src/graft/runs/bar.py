"""Show a run where Python is used: bars on a terminal, a drawing in a notebook, lines in a log.

`graft.train` and `graft.run` do so by default. progress=False silences them, as does GRAFT_PROGRESS=off.
"""

from collections.abc import Sequence
from typing import Any

from graft.runs import telling
from graft.runs.surfaces import Notebook, Story, Surface, Task, surface


class Bar:
    """An observer (see `graft.Observer`) that shows what it hears."""

    def __init__(self) -> None:
        self.story = Story()
        self.surface: Surface | None = surface(self.story)
        self.steps = telling.Steps()
        self._figures: Sequence[str] = ()  # of the last step
        self._trains = False

    def say(self, text: str) -> None:
        """Show a line that stays."""
        self.story.lines.append(text)
        if self.surface is not None:
            self.surface.say(text)

    def told(self, text: str) -> None:
        """Show a notice."""
        self.say(f"note    {text}")

    def close(self) -> None:
        """Take away what only holds while the run is going on."""
        if self.surface is not None:
            self.surface.close()

    def _show(self, *tasks: Task) -> None:
        if self.surface is not None:
            now = [Task("train", self.steps.done, self.steps.total, self._figures)] if self._trains else []
            self.surface.show([*now, *tasks])

    def stage(self, name: str, number: int, count: int, recipe: Any) -> None:
        self.story.losses.clear()
        self.say(f"stage {number} of {count}   {name}")

    def doing(self, what: str, done: int, total: int) -> None:
        self._show(Task(what, done, total))

    def begin(self, facts: dict[str, Any]) -> None:
        self.steps = telling.Steps(counts=telling.counts_of(facts["stage"]))
        self.say(telling.base_line(facts))
        self.say(telling.adapter_line(facts))

    def data(self, report: Any) -> None:
        self.say(telling.data_line(report))
        for text in report.notes():
            self.told(text)

    def start(self, plan: dict[str, Any]) -> None:
        self.steps.start(plan)
        self._trains, self._figures = True, ()
        self._show()

    def resumed(self, step: int) -> None:
        self.say(f"resumed from step {step:,}")

    def step(self, record: dict[str, Any]) -> None:
        self.steps.take(record)
        if "loss" in record:
            self.story.losses.append(record["loss"])
        left = telling.left(self.steps.left)
        self._figures = [*telling.of_answers(record), *self.steps.figures(record), left]
        self._show()

    def wrote(self, done: int, total: int) -> None:
        self._show(*([Task("writing answers", done, total)] if done < total else []))

    def evaluated(self, record: dict[str, Any]) -> None:
        self.story.evaluations.append({"step": record["step"], **telling.evaluated(record)})
        if not isinstance(self.surface, Notebook):  # which has a table of them
            self.say(telling.eval_line(record))
        self._show()

    def sampled(self, texts: Sequence[str]) -> None:
        for text in texts:
            self.say(telling.sample_line(text))
        self._show()

    def warn(self, text: str) -> None:
        self.say(f"warning {text}")

    def finished(self, record: dict[str, Any]) -> None:
        if self._trains:
            self._trains = False
            self.say(self.steps.ended(record))
        self._show()

    def scored(self, columns: dict[str, dict[str, float]]) -> None:
        for line in telling.score_lines(columns):
            self.say(line)
