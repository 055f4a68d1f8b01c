"""Who hears of a run: an object with methods for the events that it wants to hear.

Every event is a method of `Observer`, and every method is optional: an object with `step` alone is an
observer. docs/observers.md lists the events with their fields.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graft.data import DataReport
    from graft.recipe import Recipe


class Observer:
    """Receives the events of a run. Derive from it and write the methods that you need.

    stop: set it to True at any event, and the run ends after the step that it is at: that step is evaluated
    and saved as if it had been the last, the adapter is written and scored. It is set back to False then.
    """

    stop: bool = False

    def stage(self, name: str, number: int, count: int, recipe: "Recipe") -> None:
        """Receive the start of a stage, which is number `number` of `count`, of a recipe with several."""

    def doing(self, what: str, done: int, total: int) -> None:
        """Receive what the run is busy with beside its steps: "loading seedling", "scoring", ...

        done, total: how far it is; both are 0 where it cannot be counted.
        """

    def begin(self, facts: dict[str, Any]) -> None:
        """Receive what will be trained.

        Its keys: base, parameters, dtype, stored; methods, sites, trained; stage, recipe, folder.
        """

    def note(self, text: str) -> None:
        """Receive something that the user must know: a setting, row or model that is not used as it stands.

        Where no observer has this method of its own, notes are warnings of Python (`graft.Notice`).
        """

    def data(self, report: "DataReport") -> None:
        """Receive the data report, before the first step."""

    def start(self, plan: dict[str, Any]) -> None:
        """Receive steps, steps_per_epoch, done (by earlier starts), trained (a count), optimizer_bytes."""

    def resumed(self, step: int) -> None:
        """Receive the step after which the run continues."""

    def step(self, record: dict[str, Any]) -> None:
        """Receive the line of metrics.jsonl together with that of timing.jsonl."""

    def wrote(self, done: int, total: int) -> None:
        """Receive how many of the answers to learn from are written, of stages that write their own."""

    def evaluated(self, record: dict[str, Any]) -> None:
        """Receive step, epoch and eval_* metrics."""

    def sampled(self, texts: Sequence[str]) -> None:
        """Receive the answers to the sample prompts."""

    def saved(self, path: Path) -> None:
        """Receive the path of a checkpoint, or of the adapter at the end."""

    def warn(self, text: str) -> None:
        """Receive something that did not stop the run; it is also in timing.jsonl."""

    def finished(self, record: dict[str, Any]) -> None:
        """Receive steps, loss, tokens, best and adapter; also if nothing was left to do."""

    def scoring(self) -> None:
        """Receive the start of scoring: the held-out rows, before and after training."""

    def scored(self, columns: dict[str, dict[str, float]]) -> None:
        """Receive the scores, {"before": {metric: value}, "after": ...}, once they are measured."""


def asks_to_stop(observer: Any) -> bool:
    """Return whether an observer has set `stop`, and set it back."""
    if getattr(observer, "stop", False) is not True:
        return False
    observer.stop = False
    return True
