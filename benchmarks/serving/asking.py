"""A client that costs little: one request to a server on this machine, with the time of every piece.

answer = await ask(8000, "/v1/completions", {"model": "seedling", "prompt": "A", "stream": True})
"""

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class Gone(Exception):
    """This side has closed the connection, as it was asked to."""


@dataclass
class Answer:
    """What came.

    times: of every event with text, in seconds from the request; one of an answer in one piece.
    print_: the server's `system_fingerprint`.  tokens: as the server counts them, 0 if it does not say.
    """

    status: int = 0
    text: str = ""
    tokens: int = 0
    print_: str = ""
    error: str = ""
    logprobs: list[float] = field(default_factory=list)  # of an answer in one piece
    times: list[float] = field(default_factory=list)


async def ask(
    port: int,
    path: str,
    body: Mapping[str, Any] | None = None,
    *,
    key: str | None = None,
    leave_after: int | None = None,
) -> Answer:
    """Send a request and return the answer; without a body it is a GET.

    key: of the caller.  leave_after: close the connection after so many events. Raises Gone then.
    """
    begun = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
    try:
        data = b"" if body is None else json.dumps(body).encode()
        verb = "GET" if body is None else "POST"
        head = f"{verb} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
        head += f"Authorization: Bearer {key}\r\n" if key else ""
        head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        await writer.drain()
        if leave_after == 0:
            raise Gone
        answer = Answer(int((await reader.readline()).split()[1]))
        headers = {}
        while (line := await reader.readline()).strip():
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        if "event-stream" in headers.get("content-type", ""):
            await _events(reader, headers, answer, begun, leave_after)
        else:
            _whole(b"".join([part async for part in _parts(reader, headers)]), answer)
            answer.times.append(time.perf_counter() - begun)
        return answer
    finally:
        writer.close()


async def _parts(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> Any:
    """Yield the parts of a body as they come."""
    if headers.get("transfer-encoding") == "chunked":
        while size := int((await reader.readline()).split(b";")[0], 16):
            yield (await reader.readexactly(size + 2))[:-2]
    elif "content-length" in headers:
        yield await reader.readexactly(int(headers["content-length"]))
    else:
        while part := await reader.read(1 << 16):
            yield part


async def _events(
    reader: asyncio.StreamReader, headers: Mapping[str, str], answer: Answer, begun: float, last: int | None
) -> None:
    waiting, seen = b"", 0
    async for part in _parts(reader, headers):
        waiting += part
        *events, waiting = waiting.replace(b"\r\n", b"\n").split(b"\n\n")
        for event in events:
            content = event.partition(b"data: ")[2]
            if not content or content == b"[DONE]":
                continue
            data = json.loads(content)
            answer.print_ = data.get("system_fingerprint") or answer.print_
            if "error" in data:
                answer.error = str(data["error"])
            for choice in data.get("choices") or ():
                text = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
                if text:
                    answer.text += text
                    answer.times.append(time.perf_counter() - begun)
            answer.tokens = (data.get("usage") or {}).get("completion_tokens") or answer.tokens
            seen += 1
            if seen == last:
                raise Gone


def _whole(content: bytes, answer: Answer) -> None:
    try:
        data = json.loads(content)
    except ValueError:
        answer.text = content.decode(errors="replace")
        return
    answer.error = str(data.get("error") or "")
    answer.print_ = data.get("system_fingerprint") or ""
    for choice in data.get("choices") or ():
        answer.text += choice.get("text") or (choice.get("message") or {}).get("content") or ""
        answer.logprobs += (choice.get("logprobs") or {}).get("token_logprobs") or []
    answer.tokens = (data.get("usage") or {}).get("completion_tokens") or 0
