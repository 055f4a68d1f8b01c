"""POST /v1/completions."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import torch
from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from graft.data.templates import Prompt
from graft.generate.request import Completion
from graft.serve.chat import NO_CACHE
from graft.serve.failures import ApiError, refusal
from graft.serve.jobs import Piece
from graft.serve.schema import CompletionAsked
from graft.serve.streams import merged, whole
from graft.serve.texts import Choice, Served, begin, sse, usage
from graft.serve.tokens import text_logprobs

DEFAULT_TOKENS = 16  # OpenAI's


async def answer(request: Request, asked: CompletionAsked) -> Response:
    """Continue one or several prompts, whole or as a stream."""
    served: Served = request.app.state.served
    choices = await begin(
        served,
        asked,
        _prompts(asked, served),
        key=request.state.key,
        max_tokens=asked.max_tokens or DEFAULT_TOKENS,
        logprobs=asked.logprobs,
        chat=False,
    )
    writer = _Writer(served, asked, choices)
    if asked.stream:
        return StreamingResponse(writer.stream(), media_type="text/event-stream", headers=NO_CACHE)
    return JSONResponse(await writer.body(await whole(request, choices)))


def _prompts(asked: CompletionAsked, served: Served) -> list[Prompt]:
    """Return the prompts as `encoded` takes them. Raises ApiError for tokens that the model does not have."""
    given: Any = asked.prompt
    if isinstance(given, str):
        return [given]
    if given and isinstance(given[0], int):
        given = [given]
    if not given or any(one == [] for one in given):
        raise ApiError(400, "an empty prompt", param="prompt")
    size = served.base.vocabulary
    if any(not 0 <= token < size for one in given if isinstance(one, list) for token in one):
        raise ApiError(400, f"tokens beyond the {size:,} of this model", param="prompt")
    return list(given)


class _Writer:
    """Writes the answers to one request."""

    def __init__(self, served: Served, asked: CompletionAsked, choices: list[Choice]) -> None:
        self._served, self._asked, self._choices = served, asked, choices
        self._tokenizer = served.base.tokenizer
        self._head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": asked.model,
        }

    async def body(self, completions: list[Completion]) -> dict[str, Any]:
        """Return the whole answer."""
        listed = []
        for choice, completion in zip(self._choices, completions, strict=True):
            echo = self._echo(choice)
            piece = Piece(
                completion.text, completion.tokens, completion.logprobs or [], completion.top_logprobs or []
            )
            logprobs = self._logprobs(piece, len(echo))
            if echo and logprobs is not None:
                read = await self._read(choice)
                logprobs = {
                    key: [*first, *(logprobs[key] or [])] if isinstance(first, list) else logprobs[key]
                    for key, first in read.items()
                }
            one = {
                "index": choice.index,
                "text": echo + completion.text,
                "logprobs": logprobs,
                "finish_reason": completion.finish_reason,
            }
            listed.append(one)
        return {**self._head, **self._print(), "choices": listed, "usage": usage(self._choices, completions)}

    def _print(self) -> dict[str, str]:
        """Return which version answers; it is known when the first token is written."""
        return {"system_fingerprint": self._served.version(*(choice.job.digest for choice in self._choices))}

    async def stream(self) -> AsyncIterator[bytes]:
        """Yield the answer as server-sent events."""
        completions: list[Completion] = []
        lengths: dict[int, int] = {}
        try:
            async for choice, found in merged(self._choices):
                if choice.index not in lengths:
                    echo = self._echo(choice)
                    lengths[choice.index] = len(echo)
                    if echo:
                        yield self._chunk(choice, echo)
                if isinstance(found, Completion):
                    completions.append(found)
                    yield self._chunk(choice, "", reason=found.finish_reason)
                elif found.text or (found.logprobs and self._asked.logprobs is not None):
                    logprobs = self._logprobs(found, lengths[choice.index])
                    lengths[choice.index] += len(found.text)
                    yield self._chunk(choice, found.text, logprobs)
            if self._asked.stream_options is not None and self._asked.stream_options.include_usage:
                counts = usage(self._choices, completions)
                yield sse({**self._head, **self._print(), "choices": [], "usage": counts})
        except Exception as error:
            yield sse(refusal(error).body())
        yield sse("[DONE]")

    def _chunk(self, choice: Choice, text: str, logprobs: Any = None, reason: str | None = None) -> bytes:
        one = {"index": choice.index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        print_ = self._served.version(choice.job.digest)
        return sse({**self._head, "system_fingerprint": print_, "choices": [one]})

    def _echo(self, choice: Choice) -> str:
        if not self._asked.echo:
            return ""
        return str(self._tokenizer.decode(choice.prompt, skip_special_tokens=True))

    def _logprobs(self, piece: Piece, offset: int) -> dict[str, Any] | None:
        return None if self._asked.logprobs is None else text_logprobs(self._tokenizer, piece, offset)

    async def _read(self, choice: Choice) -> dict[str, Any]:
        """Return the log-probabilities of the prompt's own tokens; the first one has none."""
        served, wanted = self._served, self._asked.logprobs or 0

        def measure() -> tuple[list[float], list[dict[int, float]]]:
            name = served.adapter(self._asked.model)
            version = None if name is None else served.registry.acquire(name)
            try:
                ids = torch.tensor([choice.prompt], device=served.base.device)
                rows = [None if version is None else version.adapter]
                logits = served.base(ids, adapters=rows, use_cache=False).logits[0, :-1].float()
            finally:
                if version is not None:
                    served.registry.release(version)
            logs = logits.log_softmax(1)
            own = logs.gather(1, ids[0, 1:, None])[:, 0].tolist()
            best = logs.topk(wanted) if wanted else None
            top = (
                []
                if best is None
                else [
                    dict(zip(tokens, values, strict=True))
                    for tokens, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
                ]
            )
            return own, top

        own, top = await asyncio.wrap_future(served.worker.call(measure, served.adapter(self._asked.model)))
        rest = text_logprobs(
            self._tokenizer, Piece("", choice.prompt, [0.0, *own], [{}, *top] if top else []), 0
        )
        rest["token_logprobs"][:1] = [None]
        if rest["top_logprobs"]:
            rest["top_logprobs"][:1] = [None]
        return rest
