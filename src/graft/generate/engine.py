"""The decoding engine: requests wait in a queue, get a slot in the cache, and leave it when their text ends.

Each step reads a piece of the prompts that have come in, no more than `chunk` tokens, so that the texts that
are being written do not wait for a long prompt; then it writes one token of every one of them. Prompts of one
adapter that begin alike are read once as far as they do. A request whose text would not fit into the cache
beside those that are there waits for its turn.

    engine = Engine(stepper, max_rows=8, max_cache_tokens=16_384)
    engine.submit(Request(ids, adapter="sql", how=Sampling(), tokenizer=tokenizer))
    for request in engine.run():            # or step() by step(), and submit() in between
        print(request.completion.text)

Orca (Yu et al. 2022) has joining and leaving at every step, Sarathi (Agrawal et al. 2023, 2308.16369) has
prompts in pieces beside decoding.
"""

from collections import deque
from collections.abc import Iterator

import torch

from graft.generate.choose import Chooser
from graft.generate.request import Request, too_long
from graft.generate.rows import SHARED, Row, common, join, leave
from graft.generate.stepper import BLOCK, Stepper


class Engine:
    """Writes the texts of requests, many at a time.

    max_rows: texts that are written at once.
    max_cache_tokens: positions of the cache, in all slots together; None for as many as these texts take.
    chunk: tokens of prompts that are read between two tokens of the texts that are being written, best a
        multiple of `stepper.BLOCK`.

    Nothing runs but in `step` and `run`, which belong into `evaluating(base)` and torch.no_grad. While
    requests are in it, the weights of base and adapters must stay as they are: the cache was made with them.
    """

    def __init__(
        self, stepper: Stepper, *, max_rows: int = 8, max_cache_tokens: int | None = None, chunk: int = 512
    ) -> None:
        self._stepper, self._max_rows, self._chunk = stepper, max_rows, chunk
        self._limit = max_cache_tokens
        self._waiting: deque[Request] = deque()
        self._reading: list[Row] = []
        self._writing: list[Row] = []  # in the order of their adapters
        self._slots: list[int] = []  # theirs
        self._chooser: Chooser | None = None
        self._tokens: torch.Tensor | None = None  # the last token of each of them
        self._free = list(range(max_rows - 1, -1, -1))
        self._shape = (0, 0)

    @property
    def idle(self) -> bool:
        """Whether no request is left."""
        return not (self._waiting or self._reading or self._writing)

    @property
    def waiting(self) -> int:
        """How many requests wait for a slot."""
        return len(self._waiting)

    @property
    def slots(self) -> int:
        """How many slots are taken."""
        return self._max_rows - len(self._free)

    def submit(self, request: Request) -> Request:
        """Put a request into the queue. Raises UsageError for one that the cache can never hold."""
        length = self._length(request)
        if self._limit is not None and length > self._limit:
            raise too_long(request, self._limit)
        self._waiting.append(request)
        return request

    def cancel(self, request: Request) -> None:
        """Take a request out, wherever it is. Its text stays unfinished."""
        self._waiting = deque(other for other in self._waiting if other is not request)
        for row in [row for row in [*self._reading, *self._writing] if row.request is request]:
            self._close(row)

    def run(self) -> Iterator[Request]:
        """Yield every request when its text has ended, until none is left."""
        while not self.idle:
            yield from self.step()

    def step(self) -> list[Request]:
        """Read a piece of the new prompts, write one token of every text; return the requests that ended."""
        self._admit()
        return [*self._read(), *self._write()]

    def _length(self, request: Request) -> int:
        # The last token is never read again.
        return self._stepper.positions(request.adapter) + len(request.prompt) + request.limit - 1

    # Joining

    def _admit(self) -> None:
        """Give slots to waiting requests, oldest first, as far as there is room."""
        shape, joined = self._shape, []
        lengths = [row.length for row in [*self._reading, *self._writing]]
        while self._waiting and len(lengths) < self._max_rows:
            length = self._length(self._waiting[0])
            fitting = self._fitting(shape, [*lengths, length])
            if fitting is None:
                break
            shape = fitting
            lengths.append(length)
            joined.append((self._waiting.popleft(), length))
        if shape != self._shape:
            self._stepper.reserve(*shape)
            self._shape = shape
        for request, length in joined:
            row = Row(request, self._free.pop(), length)
            self._stepper.open(row.slot, request.adapter)
            self._reading.append(row)

    def _fitting(self, shape: tuple[int, int], lengths: list[int]) -> tuple[int, int] | None:
        """Return the size of a cache, slots and positions of each, that holds texts of these lengths.

        None where the limit allows none. The size stays as it is, or grows, if it may.
        """
        needed = len(lengths), max(lengths)
        grown = max(shape[0], needed[0]), max(shape[1], needed[1])
        for size in (grown, needed):
            if self._limit is None or size[0] * size[1] <= self._limit:
                return size
        return None

    def _close(self, row: Row) -> None:
        """End a row. What others need of its prompt stays: in one that waits for it, and in its own slot."""
        if row in self._reading:
            self._reading.remove(row)
        else:
            leave(self._writing, self._writing.index(row))
            self._chooser = None
        for other in self._reading:
            if not other.read and self._takes_over(other, row):
                break
        if not self._inherited(row):
            self._stepper.free(row.slot)
            self._free.append(row.slot)

    def _inherited(self, row: Row) -> bool:
        """Give the slot of a row that ends to the next request in the queue, if their prompts begin alike."""
        if not self._waiting:
            return False
        heir = Row(self._waiting[0], row.slot, self._length(self._waiting[0]))
        heir.read = min(self._common(heir, row), row.read)
        lengths = [heir.length, *(other.length for other in [*self._reading, *self._writing])]
        if heir.read < SHARED or self._fitting(self._shape, lengths) != self._shape:
            return False
        self._waiting.popleft()
        self._stepper.truncate(row.slot, heir.read)
        self._reading.append(heir)
        return True

    # Reading prompts

    def _read(self) -> list[Request]:
        """Read one piece of the prompts; the first token of a prompt that is through is chosen."""
        if not self._reading:
            return []
        pieces: list[tuple[Row, list[int]]] = []
        left = self._chunk
        for row in self._ready():
            if left <= 0:
                break
            end = row.read + left
            if end < len(row.request.prompt) and (pieces or end - end % BLOCK > row.read):
                end -= end % BLOCK
            tokens = row.request.prompt[row.read : end]
            if not tokens:
                break
            pieces.append((row, tokens))
            left -= len(tokens)
        for row, tokens in pieces:
            row.read += len(tokens)
        rows = [row for row, _ in pieces if row.read == len(row.request.prompt)]
        unfinished = {row.slot for row, _ in pieces} - {row.slot for row in rows}
        logits = self._stepper.prefill([(row.slot, tokens) for row, tokens in pieces], unfinished)
        if not rows:
            return []
        tokens, _ = Chooser([row.request for row in rows], logits.shape[1], logits.device).choose(logits)
        return self._start(rows, tokens)

    def _start(self, rows: list[Row], tokens: list[int]) -> list[Request]:
        """Let rows whose prompts are read join those that are written, with their first tokens."""
        ended = []
        for row, token in zip(rows, tokens, strict=True):
            if row.request.take(token):
                ended.append(row.request)
                self._close(row)
                continue
            self._reading.remove(row)
            join(self._writing, row)
            self._chooser = None
        return ended

    def _ready(self) -> list[Row]:
        """Return the rows whose prompts are read now.

        A new row takes over what another one has read of the same beginning, and waits until it has.
        """
        ready = []
        for place, row in enumerate(self._reading):
            others = [] if row.read else [*self._writing, *self._reading[:place]]
            shared = [self._common(row, other) for other in others]
            best = max(shared, default=0)
            if best >= SHARED:
                source = others[shared.index(best)]
                if source.read < best:
                    continue
                self._takes_over(row, source)
            ready.append(row)
        return ready

    def _takes_over(self, row: Row, other: Row) -> bool:
        """Let a new row take over what another has read of the same beginning, if that is worth it."""
        shared = min(self._common(row, other), other.read)
        if shared >= SHARED:
            self._stepper.copy_prefix(other.slot, row.slot, shared)
            row.read = shared
        return shared >= SHARED

    def _common(self, row: Row, other: Row) -> int:
        """Return how many tokens of another prompt a row can take over; one at least is left to be read."""
        prompt, theirs = row.request.prompt, other.request.prompt
        if row.request.adapter != other.request.adapter:
            return 0
        shared = common(prompt, theirs)
        before = max(shared - 1, 0) // BLOCK * BLOCK  # where the last block of them begins
        alike = (len(prompt) > before + BLOCK) == (len(theirs) > before + BLOCK)
        return shared if alike else before  # a block that only one prompt goes beyond may be read in two ways

    # Writing

    def _write(self) -> list[Request]:
        """Write one token of every text."""
        if not self._writing:
            return []
        if self._chooser is None:
            self._slots = [row.slot for row in self._writing]
            self._tokens = None
        if self._tokens is None:
            self._tokens = torch.tensor([row.request.tokens[-1] for row in self._writing])
        logits = self._stepper.decode(self._slots, self._tokens)
        if self._chooser is None:
            requests = [row.request for row in self._writing]
            self._chooser = Chooser(requests, logits.shape[1], logits.device)
        tokens, self._tokens = self._chooser.choose(logits)
        ended = [row for row, token in zip(self._writing, tokens, strict=True) if row.request.take(token)]
        for row in ended:
            self._close(row)
        return [row.request for row in ended]
