"""POST /v1/completions."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import torch
from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from graft.generate.request import Completion
from graft.serve.chat import NO_CACHE
from graft.serve.failures import refusal
from graft.serve.jobs import Piece
from graft.serve.middle import between
from graft.serve.schema import CompletionAsked
from graft.serve.streams import merged, whole
from graft.serve.texts import Choice, Served, begin, held, in_engine, sse, token_prompts, usage
from graft.serve.tokens import text_logprobs

DEFAULT_TOKENS = 16  # OpenAI's
AT_ONCE = 256  # places of a prompt whose log-probabilities are in memory together


async def answer(request: Request, asked: CompletionAsked) -> Response:
    """Continue one or several prompts, whole or as a stream."""
    served: Served = request.app.state.served
    prompts = token_prompts(asked.prompt, served, "prompt")
    if asked.suffix:
        tokenizer, suffix = served.base.tokenizer, asked.suffix
        prompts = [await asyncio.to_thread(between, tokenizer, prompt, suffix) for prompt in prompts]
    choices = await begin(
        served,
        asked,
        prompts,
        key=request.state.key,
        max_tokens=asked.max_tokens or DEFAULT_TOKENS,
        logprobs=asked.logprobs,
        chat=False,
    )
    writer = _Writer(served, asked, choices)
    if asked.stream:
        return StreamingResponse(writer.stream(), media_type="text/event-stream", headers=NO_CACHE)
    return JSONResponse(await writer.body(await whole(request, choices)))


class _Writer:
    """Writes the answers to one request."""

    def __init__(self, served: Served, asked: CompletionAsked, choices: list[Choice]) -> None:
        self._served, self._asked, self._choices = served, asked, choices
        self._tokenizer = served.base.tokenizer
        self._measured: dict[int, dict[str, Any]] = {}
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
            if self._asked.echo and logprobs is not None:
                logprobs = _joined(await self._logprobs_of_prompt(choice), logprobs)
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
                    if self._asked.echo and self._asked.logprobs is not None:
                        yield self._chunk(choice, echo, await self._logprobs_of_prompt(choice))
                    elif echo:
                        yield self._chunk(choice, echo)
                if isinstance(found, Completion):
                    completions.append(found)
                    yield self._chunk(choice, "", reason=found.finish_reason)
                elif found.text or (found.logprobs and self._asked.logprobs is not None):
                    logprobs = self._logprobs(found, lengths[choice.index])
                    lengths[choice.index] += len(found.text)
                    yield self._chunk(choice, found.text, logprobs)
            if self._asked.counts:
                counts = usage(self._choices, completions)
                yield sse({**self._head, **self._print(), "choices": [], "usage": counts})
        except Exception as error:
            yield sse(refusal(error).body())
        yield sse("[DONE]")

    def _chunk(self, choice: Choice, text: str, logprobs: Any = None, reason: str | None = None) -> bytes:
        one = {"index": choice.index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        rest = {"usage": None} if self._asked.counts else {}
        print_ = self._served.version(choice.job.digest)
        return sse({**self._head, "system_fingerprint": print_, "choices": [one], **rest})

    def _echo(self, choice: Choice) -> str:
        if not self._asked.echo:
            return ""
        return str(self._tokenizer.decode(choice.prompt, skip_special_tokens=True))

    def _logprobs(self, piece: Piece, offset: int) -> dict[str, Any] | None:
        return None if self._asked.logprobs is None else text_logprobs(self._tokenizer, piece, offset)

    async def _logprobs_of_prompt(self, choice: Choice) -> dict[str, Any]:
        """Return the log-probabilities of the prompt's own tokens, measured once for all of its choices."""
        if id(choice.prompt) not in self._measured:
            served, wanted = self._served, self._asked.logprobs or 0
            async with held(served, self._asked.model) as version:
                name = None if version is None else version.adapter
                own, top = await in_engine(
                    served, lambda: _measured(served.base, name, choice.prompt, wanted)
                )
            piece = Piece("", choice.prompt, [0.0, *own], [{}, *top] if wanted else [])
            read = text_logprobs(self._tokenizer, piece, 0)
            for column in ("token_logprobs", "top_logprobs"):
                if read[column]:
                    read[column][0] = None  # nothing stands before the first token
            self._measured[id(choice.prompt)] = read
        return self._measured[id(choice.prompt)]


def _measured(
    base: Any, adapter: str | None, prompt: list[int], wanted: int
) -> tuple[list[float], list[dict[int, float]]]:
    """Return the log-probability of each token of a prompt but the first, and the likeliest at its place."""
    ids = torch.tensor([prompt], device=base.device)
    logits = base(ids, adapters=[adapter], use_cache=False).logits[0, :-1]
    own: list[float] = []
    top: list[dict[int, float]] = []
    for start in range(0, len(logits), AT_ONCE):
        logs = logits[start : start + AT_ONCE].float().log_softmax(1)
        next_ids = ids[0, start + 1 : start + 1 + len(logs), None]
        own += logs.gather(1, next_ids)[:, 0].tolist()
        if wanted:
            best = logs.topk(wanted)
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            top += [dict(zip(tokens, values, strict=True)) for tokens, values in pairs]
    return own, top


def _joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Return log-probabilities of two texts, one behind the other."""
    return {key: [*first[key], *(second[key] or [])] if first[key] else second[key] for key in second}
