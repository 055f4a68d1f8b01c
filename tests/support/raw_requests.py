"""Requests as bytes, whole and mutated, and what a server answers to them over bare sockets."""

import asyncio
import json
import random
import re
import time

HEAD = "Host: 127.0.0.1\r\nConnection: close\r\n"
STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")


def request(method: str, path: str, body: bytes = b"", head: str = HEAD) -> bytes:
    """Return a request, with the headers that belong to its body."""
    of_body = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
    return f"{method} {path} HTTP/1.1\r\n{head}{of_body}\r\n".encode() + body


def chunked(body: bytes, size: int = 7) -> bytes:
    """Return a request whose body comes in chunks, without a length."""
    head = HEAD + "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
    pieces = [body[i : i + size] for i in range(0, len(body), size)]
    parts = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return request("POST", "/v1/completions", head=head) + parts + b"0\r\n\r\n"


TEXT = json.dumps({"model": "seedling", "prompt": "The", "max_tokens": 2}).encode()
TALK = json.dumps(
    {"model": "seedling", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "stream": True}
).encode()
WHOLE = (
    request("GET", "/health"),
    request("GET", "/v1/models/lora%2d0"),
    request("GET", "/metrics"),
    request("POST", "/v1/completions", TEXT),
    request("POST", "/v1/chat/completions", TALK),
    request("POST", "/v1/embeddings", json.dumps({"model": "seedling", "input": [[1, 2], [3]]}).encode()),
    request("POST", "/v1/load_lora_adapter", json.dumps({"lora_name": "../x"}).encode()),
    request("OPTIONS", "*"),
    chunked(TEXT),
)
ODD = (
    b"\r\n\r\n", b"\0", b"\xff\xfe", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00\x01",
    b"Transfer-Encoding: chunked\r\n", b"Content-Length: -1\r\n", b"Content-Length: 5, 6\r\n",
    b"Content-Length: 99999999999999999999\r\n", b"Host: evil.example\r\n", b"Expect: 100-continue\r\n",
    b"Upgrade: websocket\r\n", b"Connection: upgrade, keep-alive\r\n", b" folded: line\r\n",
    b"Authorization: Bearer \xff\xfe\r\n", b"X: " + b"a" * 20_000 + b"\r\n", b"0\r\n\r\n",
    b"ffffffffffffffff\r\n", b"%00%0d%0a", b"/../..//", b"HTTP/9.9", b"\\ud800", b"NaN", b"[" * 50,
    b"{" * 50, b'"', b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
)  # fmt: skip


def mutated(chance: random.Random) -> bytes:
    """Return a request that was changed in one to four places."""
    data = bytearray(chance.choice(WHOLE))
    for _ in range(chance.randint(1, 4)):
        at = chance.randint(0, len(data))
        end = min(len(data), at + chance.randint(1, 40))
        match chance.randrange(7):
            case 0 if data:
                data[min(at, len(data) - 1)] = chance.randrange(256)
            case 1:
                del data[at:end]
            case 2:
                data[at:at] = chance.randbytes(chance.randint(1, 40))
            case 3:
                data[at:at] = data[at:end] * chance.randint(1, 5)
            case 4:
                del data[at:]
            case 5:
                lines = [i for i in range(len(data)) if data[i : i + 2] == b"\r\n"]
                place = chance.choice(lines) + 2 if lines else at
                data[place:place] = chance.choice(ODD)
            case _:
                data[at:at] = chance.choice(ODD)
    return bytes(data)


async def codes(port: int, stream: bytes, within_s: float) -> list[int]:
    """Send bytes and return the codes of all answers, until the server closes. Raises TimeoutError."""
    async with asyncio.timeout(within_s):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        got = b""
        try:
            writer.write(stream)
            await writer.drain()
            while piece := await reader.read(65536):
                got += piece
        except ConnectionError:
            pass  # it was cut, which is an answer too
        finally:
            writer.close()
    return [int(code) for code in STATUS.findall(got)]


async def attack(port: int, count: int, seed: int, *, at_once: int = 32, within_s: float = 5.0) -> dict:
    """Send so many mutated requests.

    Returns {"codes": how often each was answered, 0 for an end without an answer; "hung": the seeds of those
    that got no end in time; "worst_s": the longest wait for an end}.
    """
    seen: dict[int, int] = {}
    hung: list[int] = []
    worst, room = 0.0, asyncio.Semaphore(at_once)

    async def one(number: int) -> None:
        nonlocal worst
        async with room:
            begun = time.monotonic()
            try:
                found = await codes(port, mutated(random.Random(number)), within_s)
            except TimeoutError:
                hung.append(number)
                return
            worst = max(worst, time.monotonic() - begun)
            for code in found or [0]:
                seen[code] = seen.get(code, 0) + 1

    await asyncio.gather(*(one(seed + number) for number in range(count)))
    return {"codes": dict(sorted(seen.items())), "hung": sorted(hung), "worst_s": worst}
