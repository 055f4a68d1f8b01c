"""From the engine's thread to the event loop of the server: what one step has written goes over at once.

A loop is woken once for a step, not once for a token. Pieces of a text that wait because the loop is busy
become one piece: a loop that is slower than the engine sends larger pieces instead of falling behind.
"""

import asyncio
import weakref
from collections import deque
from collections.abc import Callable

from graft.serve.jobs import Event, Piece
from graft.serve.worker import Worker


class Events:
    """The events of one text, in their order, for whoever waits for them in the loop."""

    def __init__(self) -> None:
        self._held: deque[Event] = deque()
        self._came = asyncio.Event()

    def put(self, event: Event) -> None:
        """Add an event; a piece that follows one that nobody took yet becomes part of it."""
        last = self._held[-1] if self._held else None
        if isinstance(event, Piece) and isinstance(last, Piece):
            self._held[-1] = _joined(last, event)
        else:
            self._held.append(event)
        self._came.set()

    async def get(self) -> Event:
        """Return the next event, when there is one."""
        while not self._held:
            self._came.clear()
            await self._came.wait()
        return self._held.popleft()


def _joined(first: Piece, second: Piece) -> Piece:
    return Piece(
        first.text + second.text,
        [*first.tokens, *second.tokens],
        [*first.logprobs, *second.logprobs],
        [*first.top_logprobs, *second.top_logprobs],
    )


class Post:
    """Hands events over to the loops that wait for them.  worker: in whose thread they happen."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._boxes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Box] = weakref.WeakKeyDictionary()

    def to(self, deliver: Callable[[Event], None]) -> Callable[[Event], None]:
        """Return what the engine's thread calls so that the running loop calls `deliver`."""
        loop = asyncio.get_running_loop()
        box = self._boxes.setdefault(loop, _Box(loop))
        after_turn, send = self._worker.after_turn, box.send

        def tell(event: Event) -> None:
            box.held.append((deliver, event))
            after_turn(send)

        return tell


class _Box:
    """What one loop is about to be told."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self.held: deque[tuple[Callable[[Event], None], Event]] = deque()

    def send(self) -> None:
        """Let the loop take everything. Raises RuntimeError for one that is closed."""
        loop = self._loop()
        if loop is not None:
            loop.call_soon_threadsafe(self._take)

    def _take(self) -> None:
        while self.held:
            deliver, event = self.held.popleft()
            deliver(event)
