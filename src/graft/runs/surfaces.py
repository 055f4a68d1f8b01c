"""Where a run is shown: a terminal, a notebook, or a log to which lines are written.

All of them are on standard error, or in the notebook's cell. A run goes on without its reader: nothing that
goes wrong here stops it.
"""

import contextlib
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from graft.core import html_card

PER_SECOND = 5  # times that a screen is drawn anew, at most: drawing takes time from training
SHARE, APART_S = 0.05, 2.0  # between two lines of one task in a log
SHOWN = 12  # evaluations, and lines, that a notebook shows
ENVIRONMENT = "GRAFT_PROGRESS"  # off: nothing is shown; on: as if it were not set


@dataclass(frozen=True)
class Task:
    """Something that is being done.  total: 0 where it cannot be counted.  figures: what it has come to."""

    what: str
    done: int = 0
    total: int = 0
    figures: Sequence[str] = ()

    @property
    def count(self) -> str:
        """How far it is, in words."""
        return f"{self.done:,}/{self.total:,}" if self.total else "..."


@dataclass
class Story:
    """What has been told of a run so far, for a surface that is drawn as a whole."""

    lines: list[str] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)


class Surface(Protocol):
    """What a bar needs of the place where it is shown."""

    def say(self, text: str) -> None:
        """Show a line that stays."""

    def show(self, tasks: Sequence[Task]) -> None:
        """Show what is being done now, instead of what was shown before."""

    def close(self) -> None:
        """Take away what only holds while something is being done."""


def surface(story: Story) -> Surface | None:
    """Return the surface that this process has; None if nothing is to be shown."""
    if os.environ.get(ENVIRONMENT, "on").lower() in ("off", "0", "false", "no") or sys.stderr is None:
        return None
    if in_notebook():
        return Notebook(story)
    return Terminal() if sys.stderr.isatty() else Log()


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook, which shows HTML: Jupyter, VS Code, Colab."""
    ipython = sys.modules.get("IPython")  # a kernel has imported it
    shell = ipython.get_ipython() if ipython is not None else None
    kind = type(shell)
    return kind.__name__ == "ZMQInteractiveShell" or "google.colab" in kind.__module__


class Throttle:
    """Says when to draw again."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._last = seconds, float("-inf")

    def due(self, *, at_once: bool = False) -> bool:
        """Return whether it is time.  at_once: it is, in any case."""
        now = time.monotonic()
        if not at_once and now - self._last < self._seconds:
            return False
        self._last = now
        return True


class Terminal:
    """Bars below the lines that have been said."""

    def __init__(self) -> None:
        self._screen: Any = None  # what rich draws, while there is something to draw
        self._throttle = Throttle(1 / PER_SECOND)
        self._whats: list[str] = []  # of the rows on the screen

    def say(self, text: str) -> None:
        """Print a line, above the bars if there are any."""
        with contextlib.suppress(OSError):  # a terminal that is no more
            if self._screen is None:
                print(text, file=sys.stderr, flush=True)
            else:
                self._screen.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(self, tasks: Sequence[Task]) -> None:
        """Draw one bar for each task."""
        if not tasks:
            return self.close()
        if self._screen is None:
            self._screen, self._whats = _screen(), []
        whats = [task.what for task in tasks]
        others, self._whats = whats != self._whats, whats
        for task_id in self._screen.task_ids if others else []:
            self._screen.remove_task(task_id)
        for place, task in enumerate(tasks):
            cells = {"count": task.count, "figures": "  ".join(task.figures)}
            facts = {"description": task.what, "completed": task.done, "total": task.total or None, **cells}
            if others:
                self._screen.add_task(**facts)
            else:
                self._screen.update(self._screen.task_ids[place], **facts)
        ended = any(task.total and task.done >= task.total for task in tasks)
        if self._throttle.due(at_once=others or ended):
            with contextlib.suppress(OSError):
                self._screen.refresh()

    def close(self) -> None:
        """Take the bars away."""
        if self._screen is not None:
            with contextlib.suppress(OSError):
                self._screen.stop()
            self._screen = None


def _screen() -> Any:
    """Return bars that rich draws when it is told to, so that no thread of it disturbs training."""
    from rich.console import Console  # late: a pipe does not need rich
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[count]}", markup=False),
        TextColumn("{task.fields[figures]}", markup=False, style="dim"),
    )
    screen = Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False)
    screen.start()
    return screen


class Log:
    """Lines, where no terminal shows a bar: of one task at most one in two seconds and 5 % of the way."""

    def __init__(self) -> None:
        self._shares: dict[str, float] = {}  # how far each task was when it had its last line
        self._throttle = Throttle(APART_S)

    def say(self, text: str) -> None:
        """Print a line."""
        with contextlib.suppress(OSError):
            print(text, file=sys.stderr, flush=True)

    def show(self, tasks: Sequence[Task]) -> None:
        """Print a line of the last task, if it is new or has come further."""
        if not tasks:
            return
        task = tasks[-1]
        share = task.done / task.total if task.total else 0.0
        new = task.what not in self._shares
        last = self._shares.get(task.what, 0.0)
        further = last < share and (share >= last + SHARE or (share >= 1 and bool(task.figures)))
        if (new or further) and self._throttle.due(at_once=new or share >= 1):
            self._shares[task.what] = share
            self.say("   ".join([f"{task.what:<7}", task.count, *task.figures]))

    def close(self) -> None:
        """Forget what was being done."""
        self._shares.clear()


class Notebook:
    """The output of a cell, which is drawn anew: what is being done, the loss, evaluations, notes."""

    def __init__(self, story: Story) -> None:
        self._story = story
        self._tasks: Sequence[Task] = ()
        self._throttle = Throttle(1 / PER_SECOND)
        self._handle: Any = None
        self._whats: list[str] = []

    def say(self, text: str) -> None:
        """Show a line; the story has it."""
        self._draw(at_once=True)

    def show(self, tasks: Sequence[Task]) -> None:
        """Draw one bar for each task."""
        whats = [task.what for task in tasks]
        others, self._whats, self._tasks = whats != self._whats, whats, tasks
        self._draw(at_once=others)

    def close(self) -> None:
        """Draw what stays."""
        self._tasks = ()
        self._draw(at_once=True)

    def _draw(self, *, at_once: bool) -> None:
        if not self._throttle.due(at_once=at_once):
            return
        from IPython.display import HTML, display  # late: only a notebook has it

        page = HTML(_cell(self._story, self._tasks))
        if self._handle is None:
            self._handle = display(page, display_id=True)
        elif self._handle is not None:
            self._handle.update(page)


def _cell(story: Story, tasks: Sequence[Task]) -> str:
    """Return the HTML of a run that is shown in a cell."""
    bars = [html_card.bar(task.what, task.done, task.total, [task.count, *task.figures]) for task in tasks]
    parts = [*bars]
    if len(story.losses) > 1:
        parts.append(html_card.spark(story.losses, "loss"))
    if story.evaluations:
        names = dict.fromkeys(name for record in story.evaluations for name in record)
        rows = [[_cell_of(record.get(name)) for name in names] for record in story.evaluations[-SHOWN:]]
        parts.append(html_card.table(rows, list(names)))
    parts.append(html_card.lines(story.lines[-SHOWN:]))
    return html_card.card(parts)


def _cell_of(value: Any) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
