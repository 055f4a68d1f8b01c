"""Show at once what a command is doing, for as long as it has nothing else to say.

    on a terminal    one line with a turning mark, which the next line replaces
    elsewhere        a plain line at once, and again with its seconds where it takes long

A thread of its own prints, because importing torch takes seconds without returning to us.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

MARKS = "|/-\\"
TURN_S = 0.12  # between two of them
FIRST_S, LATER_S = 5.0, 30.0  # between two plain lines: while it lasts FIRST_LINES of them, and afterwards
FIRST_LINES = 6
CLEAR = "\r\033[K"  # to the begin of the line, and nothing in it

Tell = Callable[[int, int], None]  # (done, total)


class _Shown:
    """The line that is shown: only the newest of those that are waited for."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.texts: list[str] = []  # the last one is shown
        self.until = ""  # what ends a waiting that has no block: any "line" of the command, or its "answer"
        self.drawn = False  # whether the terminal's last line is ours
        self.ended: threading.Event | None = None  # of the thread that prints; None while there is none
        self.quiet_since = 0.0
        self.lines = 0  # plain ones of this waiting

    def write(self, text: str) -> None:
        """Write to stderr, if anybody can read it."""
        with contextlib.suppress(OSError, ValueError):  # a pipe whose reader went away, a closed stream
            if sys.stderr is not None:
                sys.stderr.write(text)
                sys.stderr.flush()

    def start(self) -> None:
        """Print the newest text, and keep it moving."""
        self.quiet_since, self.lines = time.monotonic(), 0
        if is_terminal():
            self.draw(0)
        else:
            self.write(f"{self.texts[-1]} ...\n")
        if self.ended is None:
            self.ended = threading.Event()  # of its own: an older thread may not have seen its end yet
            threading.Thread(target=self.turn, args=(self.ended,), name="graft-wait", daemon=True).start()

    def draw(self, state: int) -> None:
        """Draw the line of the terminal."""
        text = f"{MARKS[state % len(MARKS)]} {self.texts[-1]} ..."
        self.write(f"{CLEAR}{text[: columns() - 1]}")
        self.drawn = True

    def turn(self, ended: threading.Event) -> None:
        """Draw again and again, until nothing is waited for."""
        state = 0
        while not ended.wait(TURN_S):
            state += 1
            with self.lock:
                if ended.is_set():
                    return
                if is_terminal():
                    self.draw(state)
                else:
                    self.again()

    def again(self) -> None:
        """Print a plain line where nothing was said for long."""
        now = time.monotonic()
        if now - self.quiet_since >= (FIRST_S if self.lines < FIRST_LINES else LATER_S):
            self.lines += 1
            self.quiet_since = now
            self.write(f"{self.texts[-1]} ...\n")

    def erase(self) -> None:
        """Make room for a line of the command."""
        if self.drawn:
            self.write(CLEAR)
            self.drawn = False
        self.quiet_since = time.monotonic()

    def stop(self) -> None:
        """End the thread, if nothing is waited for any longer."""
        if not self.texts and self.ended is not None:
            self.ended.set()
            self.ended = None


_shown = _Shown()


@contextlib.contextmanager
def waiting(text: str) -> Iterator[Tell]:
    """Show what is being done while the block lasts; yield what takes how far it is, for the same line."""
    with _shown.lock:
        _shown.texts.append(text)
        place = len(_shown.texts) - 1
        _shown.start()

    def tell(done: int, total: int) -> None:
        with _shown.lock:
            if place < len(_shown.texts):
                _shown.texts[place] = f"{text} {done:,} of {total:,}"

    try:
        yield tell
    finally:
        with _shown.lock:
            del _shown.texts[place:]
            _shown.erase()
            _shown.stop()


def begin(text: str, *, briefly: bool = False) -> None:
    """Show what is being done until the command prints its answer; a later call replaces the text.

    briefly: until it prints anything at all.
    """
    with _shown.lock:
        if _shown.until:
            _shown.texts.clear()
        _shown.texts.append(text)
        _shown.until = "line" if briefly else "answer"
        _shown.start()


def over() -> None:
    """Stop showing anything: the command has come to its end, or to what it answers."""
    with _shown.lock:
        _shown.texts.clear()
        _shown.until = ""
        _shown.erase()
        _shown.stop()


@contextlib.contextmanager
def making_room(*, answer: bool = False) -> Iterator[None]:
    """Print a line in the block, without what is shown while the command waits.  answer: it is its answer."""
    with _shown.lock:
        if _shown.until == "line" or (_shown.until and answer):
            over()
        _shown.erase()
        yield


def is_terminal(stream: Any = None) -> bool:
    """Return whether a stream, by default stderr, is a terminal that can replace a line."""
    stream = stream if stream is not None else sys.stderr
    try:
        return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:  # closed
        return False


def columns() -> int:
    """Return how wide the terminal is, in characters."""
    try:
        return int(os.environ.get("COLUMNS") or os.get_terminal_size(sys.stderr.fileno()).columns)
    except (OSError, ValueError, AttributeError):
        return 80
