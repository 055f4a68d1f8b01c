"""POST /v1/chat/completions."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from graft.generate.request import Completion
from graft.serve.failures import ApiError, refusal
from graft.serve.jobs import Piece
from graft.serve.schema import ChatAsked, Message
from graft.serve.streams import merged, whole
from graft.serve.texts import Choice, Served, begin, sse, usage
from graft.serve.tokens import chat_logprobs
from graft.serve.tools import calls_in


async def answer(request: Request, asked: ChatAsked) -> Response:
    """Answer a conversation, whole or as a stream."""
    served: Served = request.app.state.served
    if asked.max_tokens is not None and asked.max_completion_tokens is not None:
        raise ApiError(400, "max_tokens and max_completion_tokens; one is enough", param="max_tokens")
    if asked.top_logprobs is not None and not asked.logprobs:
        raise ApiError(400, "top_logprobs without logprobs", param="top_logprobs")
    offered = [] if asked.tool_choice == "none" else asked.tools or []
    prompt: dict[str, Any] = {"messages": [_message(message) for message in asked.messages]}
    if offered:
        if not await asyncio.to_thread(lambda: served.shows_tools):
            raise ApiError(
                400, "the chat template of this model shows no tools: leave them out", param="tools"
            )
        prompt["tools"] = [tool.model_dump(exclude_none=True) for tool in offered]
    form = asked.response_format
    if form is not None and form.type == "json_schema" and form.json_schema is None:
        raise ApiError(400, "json_schema without a schema", param="response_format")
    if form is not None and form.type != "text" and asked.min_tokens:
        raise ApiError(400, "min_tokens with response_format: a form ends where it ends", param="min_tokens")
    choices = await begin(
        served,
        asked,
        [prompt],
        key=request.state.key,
        max_tokens=asked.max_completion_tokens or asked.max_tokens,
        logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
        chat=True,
        constrained=form.json_schema.schema_ if form is not None and form.json_schema is not None else None,
        any_json=form is not None and form.type == "json_object",
    )
    names = {tool.function.name for tool in offered}
    writer = _Writer(served, asked, choices, names)
    if asked.stream:
        return StreamingResponse(writer.stream(), media_type="text/event-stream", headers=NO_CACHE)
    completions = await whole(request, choices)
    return JSONResponse(writer.body(completions))


NO_CACHE = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class _Writer:
    """Writes the answers to one request."""

    def __init__(self, served: Served, asked: ChatAsked, choices: list[Choice], tools: set[str]) -> None:
        self._served, self._asked, self._choices, self._tools = served, asked, choices, tools
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": asked.model,
        }

    def body(self, completions: list[Completion]) -> dict[str, Any]:
        """Return the whole answer."""
        choices = []
        for choice, completion in zip(self._choices, completions, strict=True):
            text, calls = calls_in(completion.text, self._tools) if self._tools else (completion.text, [])
            message: dict[str, Any] = {"role": "assistant", "content": text or None if calls else text}
            message["refusal"] = None
            if calls:
                message["tool_calls"] = calls
            choices.append(
                {
                    "index": choice.index,
                    "message": message,
                    "logprobs": self._logprobs(_all(completion)),
                    "finish_reason": "tool_calls" if calls else completion.finish_reason,
                }
            )
        counts = usage(self._choices, completions)
        head = {**self._head, **self._print(), "object": "chat.completion"}
        return {**head, "choices": choices, "usage": counts}

    def _print(self) -> dict[str, str]:
        """Return which version answers; it is known when the first token is written."""
        return {"system_fingerprint": self._served.version(*(choice.job.digest for choice in self._choices))}

    async def stream(self) -> AsyncIterator[bytes]:
        """Yield the answer as server-sent events."""
        completions: list[Completion] = []
        begun: set[int] = set()
        try:
            async for choice, found in merged(self._choices):
                if choice.index not in begun:
                    begun.add(choice.index)
                    yield self._chunk(choice, {"role": "assistant", "content": ""})
                if isinstance(found, Completion):
                    completions.append(found)
                    for event in self._end(choice, found):
                        yield event
                elif not self._tools and (found.text or (found.logprobs and self._asked.logprobs)):
                    # With tools, nobody can tell whether a text is a call until it has ended.
                    yield self._chunk(choice, {"content": found.text}, logprobs=self._logprobs(found))
            if self._asked.counts:
                counts = usage(self._choices, completions)
                head = {**self._head, **self._print(), "object": "chat.completion.chunk"}
                yield sse({**head, "choices": [], "usage": counts})
        except Exception as error:
            yield sse(refusal(error).body())
        yield sse("[DONE]")

    def _end(self, choice: Choice, completion: Completion) -> list[bytes]:
        reason, events = completion.finish_reason, []
        if self._tools:
            text, calls = calls_in(completion.text, self._tools)
            if text:
                events.append(
                    self._chunk(choice, {"content": text}, logprobs=self._logprobs(_all(completion)))
                )
            if calls:
                numbered = [{"index": place, **call} for place, call in enumerate(calls)]
                events.append(self._chunk(choice, {"tool_calls": numbered}))
                return [*events, self._chunk(choice, {}, "tool_calls")]
        return [*events, self._chunk(choice, {}, reason)]

    def _chunk(
        self, choice: Choice, delta: dict[str, Any], reason: str | None = None, logprobs: Any = None
    ) -> bytes:
        one = {"index": choice.index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        rest = {"usage": None} if self._asked.counts else {}
        head = {**self._head, "system_fingerprint": self._served.version(choice.job.digest)}
        return sse({**head, "object": "chat.completion.chunk", "choices": [one], **rest})

    def _logprobs(self, piece: Piece) -> dict[str, Any] | None:
        return chat_logprobs(self._served.base.tokenizer, piece) if self._asked.logprobs else None


def _all(completion: Completion) -> Piece:
    """Return a whole text as one piece."""
    return Piece(completion.text, completion.tokens, completion.logprobs or [], completion.top_logprobs or [])


def _message(message: Message) -> dict[str, Any]:
    """Return a message as chat templates know it: a developer speaks for the system, parts are one text."""
    content = message.content
    text = content if isinstance(content, str) else "".join(part.text for part in content or [])
    shown: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": text,
    }
    if message.tool_calls:
        shown["tool_calls"] = [call.model_dump() for call in message.tool_calls]
    for key in ("name", "tool_call_id"):
        if getattr(message, key) is not None:
            shown[key] = getattr(message, key)
    return shown
