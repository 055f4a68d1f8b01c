"""From a request to the texts of its choices: jobs for the engine's thread, whose events come back here."""

import asyncio
import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any

from graft.data.templates import Prompt
from graft.errors import GraftError
from graft.generate.prompts import encoded, end_tokens, rooms
from graft.generate.request import Completion, Constraint
from graft.generate.sampling import Sampling
from graft.serve.failures import ApiError
from graft.serve.grammar import Grammars
from graft.serve.jobs import Ended, Event, Failed, Job, Piece
from graft.serve.limits import Limits
from graft.serve.mail import Events, Post
from graft.serve.registry import Registry
from graft.serve.schema import Sampled
from graft.serve.worker import Worker


@dataclass
class Served:
    """What all routes share.  name: under which the bare base is served."""

    worker: Worker
    registry: Registry
    limits: Limits
    name: str
    grammars: Grammars
    created: int
    fingerprint: str
    log_prompts: bool = False
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
                yield event.last
                yield event.completion
                return
            yield event

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
        raise ApiError(400, f"{count} texts in one request; at most {limits.choices}", param="n")
    ids = await asyncio.to_thread(_encoded, served, prompts)
    for one in ids:
        if len(one) > limits.prompt_tokens:
            raise ApiError(
                400,
                f"a prompt of {len(one):,} tokens; at most {limits.prompt_tokens:,}",
                param="messages" if chat else "prompt",
                code="context_length_exceeded",
            )
    most = max_tokens or limits.max_tokens
    if most > limits.max_tokens:
        raise ApiError(400, f"max_tokens of {most:,}; at most {limits.max_tokens:,}", param="max_tokens")
    try:
        room = await asyncio.to_thread(rooms, base, ids, [None] * len(ids), 1)
    except GraftError as error:
        raise ApiError(400, str(error), param="prompt", code="context_length_exceeded") from None
    how = sampling(asked, most, logprobs, base)
    ends = frozenset(end_tokens(base, how.stop, chat=chat))
    seed = secrets.randbits(62)
    if served.by_key.get(key, 0) + count > limits.per_key:
        raise ApiError(429, f"more than {limits.per_key} texts at once for one key", retry_after_s=1)
    choices = list[Choice]()
    try:
        for place, prompt in enumerate(ids):
            for number in range(asked.n or 1):
                form = _constraint(served, constrained, any_json)
                index = place * (asked.n or 1) + number
                events = Events()
                job = Job(
                    prompt,
                    adapter,
                    how,
                    ends,
                    served.post.to(_Counted(events, served, key)),
                    room=room[place],
                    index=number,
                    seed=seed,
                    timeout_s=limits.timeout_s,
                    constraint=form,
                    owner=key,
                )
                served.worker.submit(job)
                served.by_key[key] = served.by_key.get(key, 0) + 1
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

    def __init__(self, events: Events, served: Served, key: str) -> None:
        self._events, self._served, self._key = events, served, key

    def __call__(self, event: Event) -> None:
        self._events.put(event)
        if not isinstance(event, Piece):
            left = self._served.by_key.get(self._key, 1) - 1
            if left:
                self._served.by_key[self._key] = left
            else:
                self._served.by_key.pop(self._key, None)


def _encoded(served: Served, prompts: list[Prompt]) -> list[list[int]]:
    return encoded(served.base, prompts)


def _constraint(served: Served, schema: dict[str, Any] | None, any_json: bool) -> Constraint | None:
    return served.grammars.json(schema) if schema is not None or any_json else None


def require_sampling(asked: Sampled, limits: Limits, logprobs: int | None) -> None:
    """Raise ApiError for settings beyond the limits."""
    stops = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
    if len(stops) > limits.stops or any(not 0 < len(stop) <= limits.stop_chars for stop in stops):
        raise ApiError(
            400, f"at most {limits.stops} stops of 1 to {limits.stop_chars} characters", param="stop"
        )
    if len(asked.logit_bias or {}) > limits.logit_bias:
        raise ApiError(400, f"at most {limits.logit_bias} entries", param="logit_bias")
    if logprobs is not None and logprobs > limits.top_logprobs:
        raise ApiError(400, f"at most {limits.top_logprobs} alternatives", param="top_logprobs")
    if asked.stream_options is not None and not asked.stream:
        raise ApiError(400, "stream_options without stream", param="stream_options")


def sampling(asked: Sampled, most: int, logprobs: int | None, base: Any) -> Sampling:
    """Return the settings of the texts. What is not said is as in OpenAI's API: temperature and top_p 1."""
    warm = 1.0 if asked.temperature is None else asked.temperature
    stops = (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())
    return Sampling(
        max_new_tokens=most,
        do_sample=warm > 0,
        temperature=warm if warm > 0 else 1.0,
        top_p=asked.top_p or 1.0,
        top_k=max(asked.top_k or 0, 0),
        min_p=asked.min_p or 0.0,
        repetition_penalty=asked.repetition_penalty or 1.0,
        presence_penalty=asked.presence_penalty or 0.0,
        frequency_penalty=asked.frequency_penalty or 0.0,
        logit_bias=_bias(asked, base),
        min_new_tokens=min(asked.min_tokens or 0, most),
        stop=stops,
        seed=None if asked.seed is None else asked.seed % 2**63,
        logprobs=logprobs,
    )


def _bias(asked: Sampled, base: Any) -> dict[int, float]:
    bias = {}
    for token, value in (asked.logit_bias or {}).items():
        if not token.isdecimal() or int(token) >= base.vocabulary:
            raise ApiError(400, f"{token[:40]!r} is no token of this model", param="logit_bias")
        bias[int(token)] = value
    return bias


def usage(choices: Iterable[Choice], completions: Iterable[Completion]) -> dict[str, int]:
    """Return how many tokens were read and written; a prompt of several choices counts once."""
    read = sum({id(choice.prompt): len(choice.prompt) for choice in choices}.values())
    written = sum(len(completion.tokens) for completion in completions)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def sse(data: dict[str, Any] | str) -> bytes:
    """Return an event of a stream."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()
