"""Handle SIGTERM and SIGINT during training: the first one lets the step end, the second ends the process."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from graft.errors import TrainingError

_CAUGHT = (signal.SIGTERM, signal.SIGINT)


class Interrupted(TrainingError):
    """A signal stopped the run, and everything is saved. exit_code: 143 (SIGTERM) or 130 (SIGINT)."""

    def __init__(self, number: int, step: int) -> None:
        self.exit_code = 128 + number
        super().__init__(
            f"stopped by {signal.Signals(number).name}; step {step} is saved",
            "to reach the last step",
            f"run the same command again: it continues from step {step}",
        )


class Signals:
    """Inside the block, `received` is the number of the signal that asked the process to stop, or None."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():  # other threads may set no handlers
            self._before = {number: signal.signal(number, self._first) for number in _CAUGHT}
        return self

    def __exit__(
        self, cls: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _first(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        for caught in _CAUGHT:  # the second ends the process at once, safely: every commit is whole or absent
            signal.signal(caught, signal.SIG_DFL)
