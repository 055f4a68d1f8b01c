"""The one thread that owns the model: it writes the texts of all requests, step by step.

Texts of different adapters, of different kinds, share the batches of the decoding engine. Adapters come and
go between two steps; their files are read by another thread, and only the texts that need one wait for it.
Callers and their adapters take turns: a row that is free goes to whoever has the fewest. Texts that no slot
of a cache can hold are written alone, one after the other, while the others wait; which adapters that
concerns is told in their `Info.alone`.
"""

import contextlib
import itertools
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from graft.base.base import Base
from graft.errors import DataError, UsageError
from graft.generate.engine import Engine
from graft.generate.generate import evaluating, steppers
from graft.generate.plain import write_plainly
from graft.generate.request import Request
from graft.serve.jobs import Busy, Call, Cancelled, Ended, Failed, Job, Late, Piece, Stats
from graft.serve.registry import Loading, NoRoom, Read, Registry, Version
from graft.serve.turns import Turns

IDLE_S = 0.5  # between two looks at deadlines, where nothing is written
SWITCH_S = 0.0002  # for which other threads keep the interpreter when a step wants it; Python's own is 0.005


@dataclass(eq=False)
class _Live:
    """A job in the engine.  given: how many of its tokens were told."""

    job: Job
    request: Request
    engine: Engine | None
    version: Version | None
    given: int = 0


class Worker:
    """The engine of a server.

    rows: texts that are written at once.  cache_tokens: positions of the cache of each kind of engine.
    chunk: tokens of prompts that are read between two tokens of the others.  waiting: texts that may wait.
    """

    def __init__(
        self,
        base: Base,
        registry: Registry,
        *,
        rows: int = 8,
        cache_tokens: int | None = None,
        chunk: int = 256,
        waiting: int = 64,
    ) -> None:
        self.base, self.registry, self.stats = base, registry, Stats()
        self._new_engine = partial(Engine, max_rows=rows, max_cache_tokens=cache_tokens, chunk=chunk)
        self._rows, self._most = rows, rows + waiting
        self._inbox: queue.SimpleQueue[Job | Call | None] = queue.SimpleQueue()
        self._wake = partial(self._inbox.put, None)
        self._count, self._lock = 0, threading.Lock()
        self._waiting = Turns(patience=rows)
        self._live: list[_Live] = []
        self._alone: deque[_Live] = deque()
        self._lanes: dict[bool, list[tuple[Engine, Callable[[str | None], bool]]]] = {}
        self._after: dict[Callable[[], None], None] = {}
        self._closing = self._stopped = False
        self._thread = threading.Thread(target=self._run, name="graft-engine", daemon=True)
        self._thread.start()

    # From any thread

    @property
    def alive(self) -> bool:
        """Whether the engine's thread works."""
        return self._thread.is_alive() and not self._stopped

    @property
    def taking(self) -> bool:
        """Whether new texts are taken."""
        return self.alive and not self._closing

    @property
    def load(self) -> int:
        """How many texts wait or are written."""
        return self._count

    @property
    def slots(self) -> int:
        """How many slots of the caches are taken."""
        return sum(engine.slots for engine in self._engines())

    def submit(self, job: Job) -> None:
        """Let a text be written; events tell what becomes of it. Raises Busy."""
        with self._lock:
            if self._closing or self._stopped or self._count >= self._most:
                raise Busy(1 + self._count // max(1, self._rows))
            self._count += 1
        self._inbox.put(job)

    def call(self, function: Callable[[], Any], needs: str | None = None) -> Future[Any]:
        """Let the engine's thread call a function between two steps: what it does has the model to itself.

        needs: an adapter that it will acquire, whose files are read first.
        """
        call = Call(function, needs)
        if self._stopped:
            call.future.set_exception(Busy(1))
        else:
            self._inbox.put(call)
        return call.future

    def load_adapter(self, name: str, *, pin: bool = False) -> Future[Version]:
        """Load an adapter as its files are now, in the place of an older version, while texts are written.

        The future fails as `Registry.load` does, or with NoRoom where texts hold all the room.
        """

        def put(read: Future[Read]) -> Version:
            return self.registry.put(read.result(), pin=pin)

        def begin() -> None:
            read = self.registry.read(name)
            attach.function = partial(put, read)
            read.add_done_callback(lambda _: self._inbox.put(attach))

        attach = Call(begin)
        self.call(begin).add_done_callback(attach.fail_as)
        return attach.future

    def close(self, timeout_s: float = 30.0) -> bool:
        """Take nothing more, end what was taken, then stop. Returns whether all ended in time."""
        self._closing = True
        until = time.monotonic() + timeout_s
        while self._count and time.monotonic() < until and self._thread.is_alive():
            time.sleep(0.02)
        whole = not self._count
        self._stopped = True
        self._inbox.put(None)
        self._thread.join(timeout_s)
        return whole

    # In the engine's thread

    def after_turn(self, call: Callable[[], None]) -> None:
        """Let a function be called when this turn has ended, once however often it is asked for."""
        self._after[call] = None

    def _call_after(self) -> None:
        after, self._after = self._after, {}
        for call in after:
            with contextlib.suppress(Exception):  # whoever listened may be gone
                call()

    def _run(self) -> None:
        sys.setswitchinterval(min(SWITCH_S, sys.getswitchinterval()))
        with torch.no_grad(), evaluating(self.base):
            while not self._stopped:
                try:
                    self._receive()
                    self._turn()
                except Exception as error:  # a defect: those that wait must not wait for ever
                    self._fail_all(error)
                self._call_after()
        self._fail_all(Cancelled("the server stops"))
        self._call_after()

    def _receive(self) -> None:
        """Take what has come in; wait for it where there is nothing to do."""
        busy = self._live or self._alone
        with contextlib.suppress(queue.Empty):
            for first in itertools.chain([True], itertools.repeat(False)):
                timeout = IDLE_S if first and not busy else None
                came = self._inbox.get(block=timeout is not None, timeout=timeout)
                if isinstance(came, Job):
                    self._waiting.add(came)
                elif came is not None:
                    self._answer(came)
                    if self._live or self._alone or self._waiting:
                        return  # one between two steps: calls without end would hold up the texts

    def _answer(self, call: Call) -> None:
        """Call a function, now or when the adapter that it needs was read."""
        try:
            if call.needs is not None and not self.registry.ready(call.needs, partial(self._inbox.put, call)):
                return
        except Exception as error:  # of this adapter alone: the texts go on
            call.fail(error)
            return
        call.run()

    def _turn(self) -> None:
        """End what must not go on, let in what can, and write one token of every text."""
        for job in self._waiting:
            if trouble := job.trouble():
                self._waiting.remove(job)
                self._end(job, Failed(trouble))
        for live in [live for live in [*self._live, *self._alone] if live.job.trouble()]:
            self._drop(live, live.job.trouble() or Cancelled("cancelled"))
        self._admit()
        for engine in self._engines():
            if not engine.idle:
                self._step(engine)
        if self._alone:
            self._write_alone(self._alone.popleft())

    def _engines(self) -> Iterator[Engine]:
        for lanes in list(self._lanes.values()):
            for engine, _ in lanes:
                yield engine

    def _admit(self) -> None:
        """Let waiting jobs in, as far as rows are free and their adapters are there."""
        held: set[str] = set()  # adapters that nothing can be written with now
        cramped = False
        while self._waiting and len(self._live) + len(self._alone) < self._rows:
            job = self._waiting.next((live.job for live in [*self._live, *self._alone]), held)
            if job is None:
                return
            try:
                version = self._acquired(job, cramped=cramped)
            except (Loading, NoRoom) as error:
                held.add(job.adapter or "")
                if isinstance(error, NoRoom):
                    self._waiting.lacks_room(job)
                    cramped = True
            except Exception as error:
                self._fail(job, error)
            else:
                self._waiting.take(job)
                self._begin(job, version)

    def _acquired(self, job: Job, *, cramped: bool) -> Version | None:
        """Return the version that a job is written with. Raises Loading, NoRoom and what loading it raises.

        cramped: one waits for room already; nothing is read that would need more of it.
        """
        if job.adapter is None:
            return None
        if cramped and not self.registry.holds(job.adapter):
            raise Loading(job.adapter)
        return self.registry.acquire(job.adapter, self._wake)

    def _fail(self, job: Job, error: Exception) -> None:
        """End every job that waits for the same adapter as this one, which cannot be loaded."""
        for other in self._waiting:
            if other.adapter == job.adapter:
                self._waiting.remove(other)
                self._end(other, Failed(error))

    def _begin(self, job: Job, version: Version | None) -> None:
        """Hand a job to an engine, or let it fail."""
        name = None if version is None else version.adapter
        try:
            if version is not None and version.heads:
                raise UsageError(
                    f"the adapter {job.adapter!r} has a task head: it writes no text",
                    "an adapter that writes",
                    "POST /v1/classify",
                )
            live = _Live(job, self._request(job, name), None, version)
            live.request.on_text = lambda piece: self._tell(live, piece)
            live.engine = self._engine_for(name, exact=job.how.logprobs is not None)
            if live.engine is not None:
                live.engine.submit(live.request)
        except Exception as error:
            if version is not None:
                self.registry.release(version)
            self._end(job, Failed(error))
            return
        job.digest = "" if version is None else version.found.digest
        self.stats.prompt_tokens += len(job.prompt)
        if live.engine is None:
            self._alone.append(live)
        else:
            self._live.append(live)

    def _request(self, job: Job, adapter: str | None) -> Request:
        taken = 0 if adapter is None else self.base.positions([adapter])
        room = None if job.room is None else job.room - taken
        if room is not None and room <= 0:
            raise DataError(
                f"a prompt of {len(job.prompt):,} tokens with an adapter that takes {taken:,} positions",
                "room for one token more",
                "shorten the prompt",
            )
        return Request(
            job.prompt,
            adapter,
            job.how,
            job.ends,
            room,
            index=job.index,
            seed=job.seed,
            tokenizer=self.base.tokenizer,
            on_text=lambda piece: None,
            constraint=job.constraint,
        )

    def _engine_for(self, adapter: str | None, *, exact: bool) -> Engine | None:
        """Return the fastest engine that takes an adapter; None if none does."""
        if exact not in self._lanes:
            found = steppers(self.base, exact)
            self._lanes[exact] = [(self._new_engine(stepper), takes) for stepper, takes in found]
        return next((engine for engine, takes in self._lanes[exact] if takes(adapter)), None)

    def _step(self, engine: Engine) -> None:
        self.stats.steps += 1
        ended = engine.step()
        for request in ended:
            live = next(live for live in self._live if live.request is request)
            self._live.remove(live)
            self._finish(live)

    def _write_alone(self, live: _Live) -> None:
        """Write a whole text by transformers' own loop, while the others wait."""
        try:
            for _ in write_plainly(self.base, [live.request], 1):
                pass
        except Exception as error:
            self._drop(live, error)
        else:
            self._finish(live)

    def _tell(self, live: _Live, text: str) -> None:
        """Pass a piece of a text on."""
        if live.engine is None and (trouble := live.job.trouble()):
            raise trouble  # out of transformers' loop
        if not live.given:
            self.stats.first_token_s.append(time.monotonic() - live.job.begun)
        try:
            live.job.on_event(self._piece(live, text))
        except Exception:  # whoever asked is gone; the others' step goes on
            live.job.cancel()
        if live.engine is None:
            self._call_after()  # a turn lasts as long as the whole text

    def _piece(self, live: _Live, text: str) -> Piece:
        request, start = live.request, live.given
        live.given = len(request.tokens)
        return Piece(text, request.tokens[start:], request.logprobs[start:], request.top_logprobs[start:])

    def _finish(self, live: _Live) -> None:
        completion = live.request.completion
        assert completion is not None, "the engine gives back what has ended"
        self.stats.tokens += len(completion.tokens)
        self.stats.text_s.append(time.monotonic() - live.job.begun)
        self._release(live)
        self._end(live.job, Ended(completion, self._piece(live, "")))

    def _drop(self, live: _Live, error: Exception) -> None:
        """End a job in the middle of its text, also where its engine is in disorder."""
        try:
            if live.engine is not None and not live.request.finished:
                live.engine.cancel(live.request)
        finally:
            for held in (self._live, self._alone):
                if live in held:
                    held.remove(live)
            self._release(live)
            self._end(live.job, Failed(error))

    def _release(self, live: _Live) -> None:
        if live.version is not None:
            self.registry.release(live.version)
            live.version = None

    def _end(self, job: Job, event: Ended | Failed) -> None:
        kinds = {Cancelled: "cancelled", Late: "late"}
        outcome = kinds.get(type(event.error), "failed") if isinstance(event, Failed) else "done"
        self.stats.jobs[job.adapter or "", outcome] += 1
        with self._lock:
            self._count -= 1
        with contextlib.suppress(Exception):  # whoever asked may be gone
            job.on_event(event)

    def _fail_all(self, error: Exception) -> None:
        """End everything that waits or is written."""
        for live in [*self._live, *self._alone]:
            with contextlib.suppress(Exception):
                self._drop(live, error)
        for job in self._waiting:
            self._waiting.remove(job)
            self._end(job, Failed(error))
        self._lanes.clear()  # a step that broke off may have left slots in disorder
        with contextlib.suppress(queue.Empty):
            while True:
                came = self._inbox.get_nowait()
                if isinstance(came, Job):
                    self._end(came, Failed(error))
                elif came is not None:
                    came.fail(error)
