"""Handle SIGTERM and SIGINT during training: the first lets the step end, the second kills the process."""

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
            "a run that reaches its last step",
            f"run the same command again: it continues from step {step}",
        )


class Signals:
    """Inside the block `received` holds the number of the signal that asked the process to stop, or None."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python sets no handlers
            self._before = {number: signal.signal(number, self._first) for number in _CAUGHT}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _first(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        for caught in _CAUGHT:  # the second ends the process at once: every commit is whole or absent
            signal.signal(caught, signal.SIG_DFL)
