"""Slow clients, half-open connections and too many of them: each is let go, and the server lives."""

import asyncio
import threading

import pytest

pytest.importorskip("uvicorn")
from fastapi import Request
from fastapi.responses import StreamingResponse
from openai_server import listening
from raw_requests import STATUS, codes, request

from graft.serve.app import bare_app
from graft.serve.connections import SPARE
from graft.serve.limits import Limits
from graft.serve.security import role

PATIENT = 60  # seconds after which a test gives up; none waits for it
MANY = 100


def serving(limits):
    """Yield the port of an application with two routes, and an event that tells when its stream has ended."""
    app, ended = bare_app(limits=limits), threading.Event()

    @app.get("/short")
    @role("open")
    async def short():
        return {"a": 1}

    @app.get("/endless")
    @role("open")
    async def endless():
        async def pieces():
            try:
                while True:
                    yield b"a" * 65536
                    await asyncio.sleep(0)
            finally:
                ended.set()

        return StreamingResponse(pieces())

    @app.put("/studio/api/files/{name}")
    @role("open")
    async def upload(request_: Request):
        return {"bytes": len(await request_.body())}

    with listening(app, limits) as url:
        yield int(url.rpartition(":")[2]), ended


@pytest.fixture(scope="module")
def hasty():
    """A server that waits only shortly."""
    yield from serving(Limits(head_s=0.2, body_s=0.2, stuck_s=0.2, idle_s=1))


@pytest.fixture(scope="module")
def small():
    """A server of a hundred connections, which waits long."""
    yield from serving(Limits(connections=MANY, head_s=PATIENT, idle_s=PATIENT))


async def drip(port, begin, drops):
    """Send a beginning, then drops until the server answers or closes, and return its answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = asyncio.create_task(reader.read())
    writer.write(begin)
    while not answer.done():
        writer.write(drops)
        await asyncio.sleep(0.01)
    writer.close()
    try:
        return await asyncio.wait_for(answer, PATIENT)
    except ConnectionError:
        return b""


SLOW = {
    "headers": (b"GET /short HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ", b"a", [408]),
    "a body": (b"POST /short HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9999\r\n\r\n", b" ", [408]),
    "chunks": (
        b"POST /short HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"1\r\n \r\n",
        [408],
    ),
    "a body that nobody reads": (
        b"GET /short HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 999999\r\n\r\n",
        b" ",
        [200],
    ),
    "headers of a second request": (b"GET /short HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGE", b"T", [200, 408]),
}


@pytest.mark.parametrize("name", sorted(SLOW))
def test_what_comes_byte_by_byte_is_ended(hasty, name):
    begin, drops, want = SLOW[name]
    answer = asyncio.run(drip(hasty[0], begin, drops))
    assert [int(code) for code in STATUS.findall(answer)] == want
    assert asyncio.run(codes(hasty[0], request("GET", "/short"), PATIENT)) == [200]


@pytest.mark.parametrize(
    "begin", [b"", b"GET /short HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"], ids=["new", "kept"]
)
def test_a_connection_on_which_nothing_comes_is_closed(hasty, begin):
    answered = asyncio.run(codes(hasty[0], begin, PATIENT))
    assert answered == ([200] if begin else [])


def test_an_upload_that_stops_is_ended(hasty):
    begin = b"PUT /studio/api/files/a HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\nabc"
    assert asyncio.run(codes(hasty[0], begin, PATIENT)) == [408]
    whole = request("PUT", "/studio/api/files/a", b"abc" * 999_999)
    assert asyncio.run(codes(hasty[0], whole, PATIENT)) == [200]


def test_a_client_that_does_not_read_is_cut_off(hasty):
    port, ended = hasty

    async def ask():
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(request("GET", "/endless"))
        assert await asyncio.to_thread(ended.wait, PATIENT)
        writer.transport.abort()

    asyncio.run(ask())


def test_of_too_many_connections_some_are_told_and_the_rest_are_cut(small):
    """500 at once, each of which waits until all are there."""

    async def ask():
        pairs = [await asyncio.open_connection("127.0.0.1", small[0]) for _ in range(500)]
        answers = []
        for _, writer in pairs:
            writer.write(request("GET", "/short"))
        for reader, writer in pairs:
            try:
                answers.append(await asyncio.wait_for(reader.read(), PATIENT))
            except ConnectionError:
                answers.append(b"")
            writer.close()
        return answers

    answers = asyncio.run(ask())
    found = [[int(code) for code in STATUS.findall(answer)] for answer in answers]
    assert found == [[200]] * MANY + [[503]] * SPARE + [[]] * (500 - MANY - SPARE)
    assert all(
        b"retry-after: " in answer and b"too_many_connections" in answer for answer in answers[MANY:164]
    )
    assert asyncio.run(codes(small[0], request("GET", "/short"), PATIENT)) == [200]


def test_a_client_that_closes_its_half_is_let_go(hasty):
    async def ask():
        reader, writer = await asyncio.open_connection("127.0.0.1", hasty[0])
        writer.write(b"POST /short HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n{")
        writer.write_eof()
        return await asyncio.wait_for(reader.read(), PATIENT)

    assert asyncio.run(ask()) == b""


def test_an_upgrade_to_another_protocol_is_not_followed(hasty):
    head = "Host: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    stream = request("GET", "/short", head=head + "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n")
    assert asyncio.run(codes(hasty[0], stream, PATIENT)) == [200]
