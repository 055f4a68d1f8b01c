"""What trackers of experiments have in common: all of them receive a run in the same way (see `trackers`).

A tracker that fails while a run is going on is left out from then on; one that does not begin stops the run
before its first step.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from graft import storage
from graft.errors import UsageError, notice
from graft.recipe import Recipe
from graft.storage.signals import Interrupted

FILE = "trackers.json"  # of a run's folder: {tracker: what it calls the run}
LONGEST = 500  # letters of a setting that every tracker takes


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """Return the settings of a recipe by dotted key, as trackers take them: numbers, words, truth values."""

    def flat(value: Any, key: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, Mapping) and value:
            for name, inner in value.items():
                yield from flat(inner, f"{key}.{name}" if key else str(name))
        else:
            yield key, value if isinstance(value, bool | int | float) else str(value)[:LONGEST]

    return dict(flat(recipe.model_dump(), ""))


def numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a record by the names that trackers group: train/... and eval/...

    >>> numbers({"step": 5, "loss": 0.5, "eval_loss": 1.5, "skipped": "loss"})
    {'train/loss': 0.5, 'eval/loss': 1.5}
    """
    named = {}
    for key, value in record.items():
        if key != "step" and isinstance(value, int | float):
            group, name = ("eval", key.removeprefix("eval_")) if key.startswith("eval_") else ("train", key)
            named[f"{group}/{name}"] = value
    return named


class Tracker:
    """An observer (see `graft.Observer`) that passes a run on; a tracker says in four methods how."""

    name: ClassVar[str]

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.folder = recipe, Path(recipe.output)
        self.begun = self.failed = False
        self.last = 0  # the last step that the tracker has of an earlier start

    # What each of them does in its own way

    def open(self, known: str, done: int) -> str:
        """Begin, or go on; return what the tracker calls this run.

        known: what `open` returned before, "" at first.  done: steps that are not repeated.
        """
        raise NotImplementedError

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Track numbers of a step."""
        raise NotImplementedError

    def texts(self, texts: Sequence[str], step: int) -> None:
        """Track texts of a step."""
        raise NotImplementedError

    def summary(self, values: Mapping[str, float]) -> None:
        """Track the scores of the whole run."""
        raise NotImplementedError

    def shut(self, outcome: str) -> None:
        """End.  outcome: FINISHED, KILLED or FAILED."""
        raise NotImplementedError

    # Events

    def start(self, plan: dict[str, Any]) -> None:
        self._open(plan["done"])

    def step(self, record: dict[str, Any]) -> None:
        self._step = record["step"]
        if self._step > self.last:
            self._pass_on(self.log, numbers(record), self._step)

    def evaluated(self, record: dict[str, Any]) -> None:
        if record["step"] > self.last:
            self._pass_on(self.log, numbers(record), record["step"])

    def sampled(self, texts: Sequence[str]) -> None:
        if self._step > self.last:
            self._pass_on(self.texts, texts, self._step)

    def scored(self, columns: dict[str, dict[str, float]]) -> None:
        if not self.begun:  # training had ended before this start
            self._open(self._ended())
        values = {f"score/{c}/{name}": v for c, column in columns.items() for name, v in column.items()}
        self._pass_on(self.summary, values)

    _step = 0

    def _ended(self) -> int:
        """Return how many steps a run has whose training has ended."""
        return int((storage.read_record(self.folder / "finished.json") or {}).get("steps", 0))

    def _open(self, done: int) -> None:
        """Begin. Raises UsageError where the tracker refuses: now, before any step is taken."""
        known = _kept(self.folder)
        self._step = done
        try:
            name = self.open(known.get(self.name, ""), done)
        except Exception as error:
            raise UsageError(
                f"{self.name} did not begin: {_first_line(error)}",
                "a tracker that accepts the run",
                f"set it up as its own pages say, or leave {self.name} out of train.report_to",
            ) from error
        self.begun = True
        storage.write_json(self.folder / FILE, known | {self.name: name})

    def _pass_on(self, method: Any, *arguments: Any) -> None:
        """Call one of a tracker's methods; leave the tracker out from then on if it fails."""
        if self.failed or not self.begun:
            return
        try:
            method(*arguments)
        except Exception as error:
            self.failed = True
            notice(f"{self.name} does not receive the run any longer: {_first_line(error)}")

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        stopped = kind is not None and issubclass(kind, Interrupted | KeyboardInterrupt)
        outcome = "FINISHED" if kind is None else "KILLED" if stopped else "FAILED"
        self._pass_on(self.shut, outcome)


def _kept(folder: Path) -> dict[str, str]:
    """Return what trackers call the run in a folder; nothing where nobody knows."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = storage.read_json(folder / FILE)
        if isinstance(found, dict):
            return {str(key): str(value) for key, value in found.items()}
    return {}


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
