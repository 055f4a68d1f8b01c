"""What the server's engine is asked for, what it answers, and how much it has done."""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from graft.generate.request import Completion, Constraint
from graft.generate.sampling import Sampling


@dataclass(frozen=True)
class Piece:
    """A piece of a text that is being written.

    tokens, logprobs, top_logprobs: of the tokens since the last piece; the last two if they were asked for.
    """

    text: str
    tokens: list[int]
    logprobs: list[float]
    top_logprobs: list[dict[int, float]]


@dataclass(frozen=True)
class Ended:
    """The end of a text.  last: what came since the last piece, and was not text."""

    completion: Completion
    last: Piece


@dataclass(frozen=True)
class Failed:
    """The end of a job without a whole text."""

    error: Exception


Event = Piece | Ended | Failed


class Busy(Exception):
    """Nothing more is taken now.  retry_after_s: when it is worth another try."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"the queue is full; try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class Late(Exception):
    """A job was not done by its deadline."""


class Cancelled(Exception):
    """Whoever asked for a job wants it no longer."""


@dataclass(eq=False)
class Job:
    """One text to be written.

    prompt: its ids.  adapter: a name of the registry, None for the bare base.  ends, room, index, seed: as in
    `Request`.  on_event: called by the engine's thread; the last event is Ended or Failed.
    timeout_s: from now.  owner: of the caller, whose texts take turns with those of others.
    digest: of the adapter's files as it was loaded, known from the first event on; "" of the bare base.
    """

    prompt: list[int]
    adapter: str | None
    how: Sampling
    ends: frozenset[int]
    on_event: Callable[[Event], None]
    room: int | None = None
    index: int = 0
    seed: int = 0
    timeout_s: float = 600.0
    constraint: Constraint | None = None
    owner: str = ""
    digest: str = ""
    begun: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Want the text no longer. Its slot is free before the next token is written."""
        self._cancelled.set()

    def trouble(self) -> Exception | None:
        """Return why this job must not go on, or None."""
        if self._cancelled.is_set():
            return Cancelled("cancelled")
        if time.monotonic() - self.begun > self.timeout_s:
            return Late(f"not done within {self.timeout_s:g} s")
        return None


@dataclass
class Stats:
    """What has been done since the start, for /metrics.

    jobs: by (adapter, outcome).  first_token_s, text_s: the latest waits.  steps: of the engines.
    """

    jobs: Counter[tuple[str, str]] = field(default_factory=Counter)
    prompt_tokens: int = 0
    tokens: int = 0
    steps: int = 0
    first_token_s: deque[float] = field(default_factory=lambda: deque(maxlen=1024))
    text_s: deque[float] = field(default_factory=lambda: deque(maxlen=1024))


@dataclass(eq=False)
class Call:
    """A function that the engine's thread is to call.  needs: an adapter that must have been read."""

    function: Callable[[], Any]
    needs: str | None = None
    future: Future[Any] = field(default_factory=Future)

    def run(self) -> None:
        if self.future.set_running_or_notify_cancel():
            try:
                self.future.set_result(self.function())
            except BaseException as error:
                self.future.set_exception(error)

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    def fail_as(self, other: Future[Any]) -> None:
        """Fail if another future has."""
        if not other.cancelled() and (error := other.exception()) is not None:
            self.fail(error)
