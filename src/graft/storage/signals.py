"""Obey SIGTERM and SIGINT at once, but never in the middle of a change.

    with obeyed():       # one command, or one run
        ...              # a signal raises Stop, wherever the process is
        with held():     # a change of several parts: an optimizer step and its line in the log
            ...          # a signal is noted, and raises Stop when the block ends

The first signal unwinds the process like an error: every `finally` is carried out, and what was half-written
is removed. The second one ends the process at once, which is safe: every commit is whole or absent.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from graft.errors import GraftError

_CAUGHT = (signal.SIGTERM, signal.SIGINT)
_TWICE_S = 0.02  # `timeout` and others signal a process and then its group: that is one request, not two


class Stop(BaseException):  # so that no `except Exception` of other code keeps it
    """A signal is on its way from where it arrived to whoever says what is saved.  number: of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Interrupted(GraftError):
    """A signal has stopped the work.  exit_code: 143 (SIGTERM) or 130 (SIGINT).

    done: what is saved; "" where that goes without saying.
    """

    def __init__(self, number: int, done: str = "", remedy: str = "run the same command again") -> None:
        self.exit_code = 128 + number
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name}{done and f'; {done}'}", "to reach the end", remedy)


class _Process:
    """What has arrived in this process. Handlers run in its main thread, so no lock is needed."""

    pid: int | None = None  # of the process whose handlers are set
    caught: tuple[int, ...] = ()  # the signals that have ours
    received: int | None = None  # the number of the first signal
    holds = 0  # blocks of `held` that are open
    waits = False  # the signal came in such a block


_process = _Process()


@contextlib.contextmanager
def obeyed() -> Iterator[None]:
    """Turn a signal in the block into Interrupted; the handlers of before are set again afterwards.

    Inside another such block, and in other threads than the main one, it does nothing: the outermost obeys.
    A signal that the process was started to ignore stays ignored.
    """
    if _process.pid == os.getpid() or threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers: dict[int, Any] = {number: signal.getsignal(number) for number in _CAUGHT}
    before = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}
    _process.pid, _process.caught = os.getpid(), tuple(before)
    _process.received, _process.holds, _process.waits = None, 0, False
    try:
        for number in before:
            signal.signal(number, _first)
        yield
        check()  # other code has swallowed the exception
    except Stop as stop:
        raise Interrupted(stop.number) from None
    finally:
        _process.pid = _process.received = None
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Let a signal wait until the block has ended. Keep such blocks short: a step's update, one commit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _process.holds += 1
    try:
        yield
    finally:
        _process.holds -= 1
    if _process.waits and not _process.holds:
        _process.waits = False
        check()


@contextlib.contextmanager
def stopped(done: str, remedy: str = "run the same command again") -> Iterator[None]:
    """Say what is saved when a signal stops the block (see `Interrupted`)."""
    try:
        yield
    except Stop as stop:
        raise Interrupted(stop.number, done, remedy) from None


def check() -> None:
    """Raise Stop if a signal has arrived: for long loops around code that may swallow the first Stop."""
    if stopping() and not _process.holds and threading.current_thread() is threading.main_thread():
        raise Stop(_process.received or 0)


def stopping() -> bool:
    """Return whether a signal has asked this process to stop."""
    return _process.received is not None


def _first(number: int, frame: FrameType | None) -> None:
    if _process.pid != os.getpid():  # a child that was forked: it has nothing to save
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    for caught in _process.caught:
        signal.signal(caught, signal.SIG_IGN)
    time.sleep(_TWICE_S)
    for caught in _process.caught:  # from now on the next signal ends the process
        signal.signal(caught, signal.SIG_DFL)
    _process.received = number
    if _process.holds:
        _process.waits = True
    else:
        raise Stop(number)
