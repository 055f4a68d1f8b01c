"""From a request to the texts of its choices: jobs for the engine's thread, whose events come back here."""

import asyncio
import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from graft.core.positions import context_length
from graft.data.rows import BadRow
from graft.data.templates import Prompt, Template, source
from graft.errors import GraftError
from graft.generate.prompts import encoded, end_tokens, rooms
from graft.generate.request import Completion, Constraint
from graft.serve.failures import ApiError
from graft.serve.grammar import Grammars
from graft.serve.jobs import Ended, Event, Failed, Job, Piece
from graft.serve.limits import Limits
from graft.serve.logs import log_text
from graft.serve.mail import Events, Post
from graft.serve.registry import Registry, Version
from graft.serve.sampled import require_sampling, sampling
from graft.serve.schema import Sampled
from graft.serve.worker import Worker

T = TypeVar("T")
Asker = tuple[str, list[int]]  # a model, and the ids that it was given
Room = int | None  # tokens that a context leaves; None: as many as one likes


@dataclass
class Served:
    """What all routes share.

    name: under which the bare base is served.  log_texts: whether prompts and answers are logged.
    by_key: how many texts of each caller are waited for now.
    """

    worker: Worker
    registry: Registry
    limits: Limits
    name: str
    grammars: Grammars
    created: int
    fingerprint: str
    log_texts: bool = False
    by_key: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.post = Post(self.worker)

    @property
    def base(self) -> Any:
        return self.worker.base

    def version(self, *digests: str) -> str:
        """Return what tells a model from every other, and from itself with other files.

        digests: of the adapters that answer, "" for the bare base; they are several where one was replaced
        between two choices of a request.
        """
        short = sorted({hashlib.sha256(digest.encode()).hexdigest()[:12] for digest in digests if digest})
        return "-".join([self.fingerprint, *short])

    @cached_property
    def shows_tools(self) -> bool:
        """Whether the chat template writes the tools that it is given."""
        template = Template(self.base.tokenizer, source(self.base.tokenizer))
        asked = [{"role": "user", "content": "Hello"}]
        function = {"name": "weather", "description": "Tell it.", "parameters": {"type": "object"}}
        try:
            shown = template.render(asked, [{"type": "function", "function": function}])
            return shown != template.render(asked)
        except BadRow:
            return True  # it takes no such conversation: that of the request may do

    def adapter(self, model: str) -> str | None:
        """Return the adapter that a model's name means; None for the bare base. Raises ApiError."""
        return None if model == self.name else self.registry.known(model).name


@dataclass(eq=False)
class Choice:
    """A text that is being written.  prompt: its ids."""

    index: int
    prompt: list[int]
    job: Job
    events: Events

    async def pieces(self) -> AsyncIterator[Piece | Completion]:
        """Yield the pieces of the text, then its completion. Raises what it failed with."""
        while True:
            event = await self.events.get()
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Ended):
                self._require_form()
                yield event.last
                yield event.completion
                return
            yield event

    def _require_form(self) -> None:
        """Raise ApiError where a text that has ended does not have the form that was asked for."""
        if trouble := getattr(self.job.constraint, "trouble", ""):
            raise ApiError(400, f"this form cannot be held: {trouble}", param="response_format")

    async def completion(self) -> Completion:
        """Return the whole text."""
        async for found in self.pieces():
            if isinstance(found, Completion):
                return found
        raise AssertionError("a text ends with its completion")


async def begin(
    served: Served,
    asked: Sampled,
    prompts: list[Prompt],
    *,
    key: str,
    max_tokens: int | None,
    logprobs: int | None,
    chat: bool,
    constrained: dict[str, Any] | None = None,
    any_json: bool = False,
) -> list[Choice]:
    """Hand the texts of a request to the engine: `n` for each prompt, in order.

    key: of the caller, in short.  max_tokens: None for as many as there is room.
    constrained: a JSON schema of the answers.  any_json: JSON objects of any form.
    Raises ApiError, Busy, AdapterError, DataError.
    """
    limits, base = served.limits, served.base
    adapter = served.adapter(asked.model)
    require_sampling(asked, limits, logprobs)
    count = (asked.n or 1) * len(prompts)
    if count > limits.choices:
        param = "n" if asked.n or chat else "prompt"
        raise ApiError(400, f"{count} texts in one request; at most {limits.choices}", param=param)
    most = max_tokens or limits.max_tokens
    if most > limits.max_tokens:
        param = "max_completion_tokens" if "max_completion_tokens" in asked.model_fields_set else "max_tokens"
        raise ApiError(400, f"{param} of {most:,}; at most {limits.max_tokens:,}", param=param)
    how = sampling(asked, most, logprobs, base)
    param = "messages" if chat else "prompt"
    ids, room = await asyncio.to_thread(read_prompts, served, prompts, param)
    ends = frozenset(await asyncio.to_thread(end_tokens, base, how.stop, chat=chat))
    forms: list[Constraint | None] = [None] * count
    if constrained is not None or any_json:
        forms = [await asyncio.to_thread(served.grammars.json, constrained) for _ in forms]
    seed = secrets.randbits(62)
    _require_share(served, key, count)
    choices: list[Choice] = []
    try:
        for place, prompt in enumerate(ids):
            for number in range(asked.n or 1):
                index = place * (asked.n or 1) + number
                events = Events()
                job = Job(
                    prompt,
                    adapter,
                    how,
                    ends,
                    served.post.to(_Counted(events, served, key, (asked.model, prompt))),
                    room=room[place],
                    index=number,
                    seed=seed,
                    timeout_s=limits.timeout_s,
                    constraint=forms[index],
                    owner=key,
                )
                served.worker.submit(job)
                _count(served, key, 1)
                choices.append(Choice(index, prompt, job, events))
    except BaseException:
        cancel(choices)
        raise
    return choices


def cancel(choices: Iterable[Choice]) -> None:
    """Want these texts no longer."""
    for choice in choices:
        choice.job.cancel()


class _Counted:
    """Passes the events of a text on, and counts it for its caller until it has ended."""

    def __init__(self, events: Events, served: Served, key: str, asked: Asker) -> None:
        self._events, self._served, self._key, (self._model, self._prompt) = events, served, key, asked

    def __call__(self, event: Event) -> None:
        self._events.put(event)
        if not isinstance(event, Piece):
            _count(self._served, self._key, -1)
        if isinstance(event, Ended) and self._served.log_texts:
            log_text(self._key, self._model, self._served.base.tokenizer, self._prompt, event.completion.text)


def _require_share(served: Served, key: str, count: int) -> None:
    """Raise ApiError where so many texts more are too many for one key."""
    most = served.limits.per_key
    if served.by_key.get(key, 0) + count > most:
        message = f"more than {most} texts at once for one key"
        raise ApiError(429, message, code="rate_limit_exceeded", retry_after_s=1)


def _count(served: Served, key: str, change: int) -> None:
    """Count texts that a key has asked for, and that have not ended."""
    left = served.by_key.get(key, 0) + change
    if left > 0:
        served.by_key[key] = left
    else:
        served.by_key.pop(key, None)


@contextmanager
def counted(served: Served, key: str, count: int) -> Iterator[None]:
    """Count what a key asks for until it has ended. Raises ApiError where that is too much."""
    _require_share(served, key, count)
    _count(served, key, count)
    try:
        yield
    finally:
        _count(served, key, -count)


def read_prompts(served: Served, prompts: Sequence[Prompt], param: str) -> tuple[list[list[int]], list[Room]]:
    """Return the ids of prompts, and how many tokens each leaves room for. Raises ApiError."""
    most = served.limits.prompt_tokens
    if served.base.family not in ("causal", "seq2seq"):
        most = min(most, context_length(served.base.model.config) or most)
    try:
        ids = encoded(served.base, prompts)
    except GraftError as error:
        raise ApiError(400, str(error), param=param, code="invalid_value") from None
    for one in ids:
        if len(one) > most:
            message = f"a prompt of {len(one):,} tokens; at most {most:,}"
            raise ApiError(400, message, param=param, code="context_length_exceeded")
    try:
        if served.base.family != "causal":
            return ids, [None] * len(ids)
        return ids, rooms(served.base, ids, [None] * len(ids), 1)
    except GraftError as error:
        raise ApiError(400, str(error), param=param, code="context_length_exceeded") from None


def token_prompts(given: Any, served: Served, param: str) -> list[Any]:
    """Return one or several texts, or the ids of one or several, as a list.

    Raises ApiError for none, an empty list of ids, and ids that the model does not have.
    """
    listed = [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else list(given)
    if not listed or any(one == [] for one in listed):
        raise ApiError(400, "an empty prompt", param=param, code="invalid_value")
    size = served.base.vocabulary
    if any(not 0 <= token < size for one in listed if isinstance(one, list) for token in one):
        raise ApiError(400, f"tokens beyond the {size:,} of this model", param=param, code="invalid_value")
    return listed


@asynccontextmanager
async def held(served: Served, model: str) -> AsyncIterator[Version | None]:
    """Hold the version of an adapter that answers a request now; None for the bare base.

    Raises ApiError where it fits only when others, which answer now, are put away.
    """
    name = served.adapter(model)
    if name is None:
        yield None
        return
    version = await in_engine(served, lambda: served.registry.acquire(name), needs=name)
    try:
        yield version
    finally:
        served.worker.call(lambda: served.registry.release(version))


async def in_engine(served: Served, function: Callable[[], T], needs: str | None = None) -> T:
    """Return what a function returns that has the model to itself, between two steps of the engine.

    needs: an adapter that it will acquire, whose files are read first.
    """
    found: T = await asyncio.wrap_future(served.worker.call(function, needs))
    return found


def usage(choices: Iterable[Choice], completions: Iterable[Completion]) -> dict[str, int]:
    """Return how many tokens were read and written; a prompt of several choices counts once."""
    read = sum({id(choice.prompt): len(choice.prompt) for choice in choices}.values())
    written = sum(len(completion.tokens) for completion in completions)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def sse(data: dict[str, Any] | str) -> bytes:
    """Return an event of a stream."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()
