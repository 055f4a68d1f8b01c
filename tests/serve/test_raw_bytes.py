"""Bytes that are nearly HTTP, over bare sockets: each gets an end, and nothing is different afterwards."""

import asyncio
import json
import urllib.request

import pytest

pytest.importorskip("uvicorn")
from openai_server import listening, served_app
from raw_requests import TEXT, WHOLE, attack, chunked, codes, request

from graft.models.load import load
from graft.serve.limits import Limits

LIMITS = Limits(max_tokens=4, head_s=0.2, body_s=0.2, idle_s=1)


@pytest.fixture(scope="module")
def port():
    """The port of a server that waits only shortly for what does not come."""
    base = load("seedling", dtype="fp32")
    with served_app(base, limits=LIMITS, waiting=64) as app, listening(app, LIMITS) as url:
        yield int(url.rpartition(":")[2])


def golden(port):
    """Return the greedy answer to one prompt, and what /health says."""
    body = json.dumps(
        {"model": "seedling", "prompt": "The kettle", "max_tokens": 4, "temperature": 0}
    ).encode()
    head = {"Content-Type": "application/json"}
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", body, head)
    with urllib.request.urlopen(asked, timeout=60) as answer:
        text = json.load(answer)["choices"][0]["text"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=60) as answer:
        return text, json.load(answer)


@pytest.mark.parametrize("place", range(len(WHOLE)))
def test_the_requests_that_are_mutated_are_right(port, place):
    (code,) = asyncio.run(codes(port, WHOLE[place], 60))
    assert code in ((200,) if place in (0, 2, 3, 4, 5, 8) else (401, 403, 404, 405))


def test_mutated_requests_get_an_end_and_change_nothing(port):
    """300 of the 5,000 of benchmarks/serving_fuzz; the time that one may take is only a bound on a hang."""
    before = golden(port)
    found = asyncio.run(attack(port, 300, seed=0, within_s=60))
    assert found["hung"] == [] and golden(port) == before
    assert not [code for code in found["codes"] if code >= 500 and code != 503], found
    assert {200, 400, 403} <= found["codes"].keys()


REFUSED = {
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"a" * 99 + b"\r\n\r\n", 400),
    "a body longer than may be": (
        b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9000000\r\n\r\n",
        413,
    ),
    "a length that is none": (
        b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n",
        400,
    ),
    "two hosts": (b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n", 400),
    "no host": (b"GET /health HTTP/1.1\r\n\r\n", 400),
    "headers of 20 kB": (request("GET", "/health", head=f"Host: 127.0.0.1\r\nX: {'a' * 20_000}\r\n"), 431),
    "headers of 300 kB": (request("GET", "/health", head=f"Host: 127.0.0.1\r\nX: {'a' * 300_000}\r\n"), 431),
    "many headers": (request("GET", "/health", head="Host: 127.0.0.1\r\n" + "A: b\r\n" * 5_000), 431),
    "chunks that are too much": (chunked(b" " * ((1 << 20) + 1), 1 << 16), 413),
    "chunks of half a request": (chunked(TEXT)[:-5], 408),
    "half a body": (request("POST", "/v1/completions", TEXT)[:-5], 408),
    "half the headers": (request("GET", "/health")[:-5], 408),
    "a chunk that is none": (chunked(TEXT).replace(b"\r\n\r\n7\r\n", b"\r\n\r\nx\r\n", 1), 400),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_wrong_is_refused_with_its_code(port, name):
    stream, want = REFUSED[name]
    assert asyncio.run(codes(port, stream, 60)) == [want]
