"""Whose turn it is: texts that wait, and which of them the next free row goes to.

    row -> the caller with the fewest texts in hand; of these the adapter with the fewest; of these the oldest

So neither a caller nor an adapter that floods the queue keeps the others waiting for more than one text each.
"""

from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator

from graft.serve.jobs import Job


class Turns:
    """The texts that wait.

    patience: how many texts on other adapters may pass by one for whose adapter there is no room.
    """

    def __init__(self, patience: int) -> None:
        self._jobs: deque[Job] = deque()
        self._patience, self._passed = patience, 0
        self._cramped: Job | None = None  # the first one that found no room

    def __iter__(self) -> Iterator[Job]:
        return iter(list(self._jobs))

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def add(self, job: Job) -> None:
        """Let a text wait, behind all others."""
        self._jobs.append(job)

    def remove(self, job: Job) -> None:
        """Let a text wait no longer, although it is not written."""
        self._jobs.remove(job)
        if job is self._cramped:
            self._cramped = None

    def take(self, job: Job) -> None:
        """Let a text be written."""
        cramped = self._cramped
        self.remove(job)
        if cramped is not None and job.adapter is not None:
            self._passed += 1

    def lacks_room(self, job: Job) -> None:
        """Tell that there is no room for the adapter of a text beside those that write now."""
        if self._cramped is None:
            self._cramped, self._passed = job, 0

    def next(self, written: Iterable[Job], held: Collection[str]) -> Job | None:
        """Return the text whose turn it is, which stays here; None if there is none.

        written: the texts in hand.  held: adapters that nothing can be written with now.
        """
        callers: Counter[str] = Counter()
        adapters: Counter[tuple[str, str | None]] = Counter()
        for job in written:
            callers[job.owner] += 1
            adapters[job.owner, job.adapter] += 1
        waiting = [job for job in self._jobs if job.adapter is None or job.adapter not in held]
        if self._cramped is not None and self._passed >= self._patience:
            waiting = [job for job in waiting if job.adapter in (None, self._cramped.adapter)]
        return min(
            waiting, key=lambda job: (callers[job.owner], adapters[job.owner, job.adapter]), default=None
        )
