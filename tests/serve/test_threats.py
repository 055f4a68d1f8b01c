"""Threats to the API: S7, S9, S10, S14, S16 and S18.

S8 and S15: test_threats_of_a_process.py. S11 to S13: test_limits.py; S11's slow clients and too many
connections: test_connections.py. S17, and what concerns the pages of S7 and S9: tests/serve/studio.
"""

import json
import logging
import re
import socket

import pytest

pytest.importorskip("uvicorn")
from fastapi.testclient import TestClient
from openai_server import ADMIN, KEY, OTHER, served_app

from graft.serve import security
from graft.serve.app import bare_app
from graft.serve.logs import keep
from graft.serve.security import ROLE, Keys

JSON = {"Content-Type": "application/json"}
MESSAGES = [{"role": "user", "content": "Hi"}]
TEXT, CHAT = "/v1/completions", "/v1/chat/completions"


def routes(app):
    """Return (method, path with its parts filled, route) of everything that an application answers."""
    found = []
    for route in app.routes:
        inner = getattr(route, "original_router", None)  # of an included one
        if inner is not None:
            found += routes(inner)
            continue
        path = re.sub(r"\{\w+(:path)?\}", "nothing", route.path)
        found += [(method, path, route) for method in sorted(route.methods or ())]
    return found


def asked(client, method, path, **headers):
    """Ask for a route with an empty body, and return the code."""
    body = {"content": b"{}", "headers": JSON | headers} if method != "GET" else {"headers": headers}
    return client.request(method, path, **body, follow_redirects=False).status_code


def test_s07_every_route_has_a_role_and_no_other_is_answered(guarded):
    found = routes(guarded)
    assert len(found) >= 20
    roles = {getattr(route.endpoint, ROLE, None) for _, _, route in found}
    assert roles <= {"open", "infer", "admin", "vote", "manage"} and {"open", "infer", "admin"} <= roles

    app = bare_app(keys=Keys.of(KEY, ADMIN))

    @app.get("/forgotten")
    async def forgotten():
        return "secret"

    client = TestClient(app, base_url="http://localhost")
    for key in (None, KEY, ADMIN):
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        assert client.get("/forgotten", headers=headers).status_code == 401


CALLERS = {"nobody": None, "a stranger": "nothing-7f3a", "infer": KEY, "admin": ADMIN}
REFUSED = {  # (role of the route, caller): the code with which it is refused; all others are let in
    ("infer", "nobody"): 401, ("infer", "a stranger"): 401,
    ("vote", "nobody"): 401, ("vote", "a stranger"): 401,
    ("admin", "nobody"): 401, ("admin", "a stranger"): 401, ("admin", "infer"): 403,
    ("manage", "nobody"): 401, ("manage", "a stranger"): 401, ("manage", "infer"): 403,
}  # fmt: skip


@pytest.mark.parametrize("caller", sorted(CALLERS))
def test_s07_each_role_lets_in_only_its_keys(guarded, caller):
    client = TestClient(guarded, base_url="http://localhost", raise_server_exceptions=False)
    key = CALLERS[caller]
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    for method, path, route in routes(guarded):
        code = asked(client, method, path, **headers)
        want = REFUSED.get((getattr(route.endpoint, ROLE), caller))
        assert code == want if want else code not in (401, 403), (method, path, code)


def test_s07_without_keys_nothing_is_loaded(guarded):
    with served_app(guarded.state.served.base) as app:
        client = TestClient(app, base_url="http://localhost")
        assert client.get("/v1/models").status_code == 200
        assert asked(client, "POST", "/v1/load_lora_adapter") == 401


def test_s07_keys_are_kept_as_digests_and_compared_in_constant_time(guarded, monkeypatch):
    keys = guarded.state.keys
    held = repr(keys) + repr(vars(guarded.state))
    assert not [key for key in (KEY, OTHER, ADMIN) if key in held]
    compared = []
    compare = security.hmac.compare_digest
    monkeypatch.setattr(
        security.hmac, "compare_digest", lambda *pair: compared.append(pair) or compare(*pair)
    )
    counts = []
    for key in (KEY, OTHER, ADMIN, "x", KEY[:-1], "", None):
        compared.clear()
        keys.who(key)
        counts.append(len(compared))
        assert all(len(one) == len(other) == 32 for one, other in compared)  # digests, never the keys
    assert set(counts) == {3}  # with every key, whichever it was


@pytest.mark.parametrize("key", ["", " ", "\n"])
def test_s07_an_empty_key_is_none(key):
    assert Keys.of(key, key) == Keys()
    assert Keys.of(f"{KEY}\n", None) == Keys.of(KEY, None)  # as files end


def test_s09_foreign_hosts_are_refused_on_every_route(guarded):
    client = TestClient(guarded, base_url="http://localhost", headers={"Authorization": f"Bearer {ADMIN}"})
    for host in (
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil",
        "[::1]evil",
        "localhost:1@x",
        "",
    ):
        for method, path, _ in routes(guarded):
            assert asked(client, method, path, Host=host) == 403, (host, path)
    for host in ("localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:1", "[::1]:8000"):
        assert asked(client, "GET", "/health", Host=host) == 200


def test_s09_pages_of_other_sites_change_nothing_and_bodies_are_json(guarded):
    client = TestClient(guarded, base_url="http://localhost", headers={"Authorization": f"Bearer {ADMIN}"})
    unsafe = [(method, path) for method, path, _ in routes(guarded) if method not in ("GET", "HEAD")]
    assert len(unsafe) >= 6
    for method, path in unsafe:
        for origin in ("http://evil.example", "null", "http://localhost:1", "https://localhost.evil"):
            assert asked(client, method, path, Origin=origin) == 403, path
        for kind in (
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "",
        ):
            answer = client.request(method, path, content=b"{}", headers={"Content-Type": kind})
            assert answer.status_code == 415 or path.startswith(security.UPLOADS), (path, kind)
            assert "set-cookie" not in answer.headers
    assert asked(client, "POST", TEXT, Origin="http://localhost") == 400  # ours: the body is read


def test_s10_no_answer_lets_other_origins_read_it(guarded, web):
    for method, path, _ in routes(guarded):
        for headers in ({"Origin": "http://evil.example"}, {"Origin": "http://localhost"}):
            answer = web.request(method, path, headers=headers)
            assert not [name for name in answer.headers if name.startswith("access-control-")], path
    asks = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    answer = web.options(TEXT, headers=asks)
    assert answer.status_code in (403, 405) and "access-control-allow-origin" not in answer.headers


@pytest.fixture
def lure():
    """An address of this machine at which nobody may ever call, and the number of those that did."""
    calls = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)

        def count():
            while True:
                try:
                    listening.accept()[0].close()
                except BlockingIOError:
                    return len(calls)
                calls.append(1)

        yield f"http://127.0.0.1:{listening.getsockname()[1]}/x", count


def test_s14_the_server_calls_nobody(guarded, lure, monkeypatch):
    url, calls = lure
    named, connect = [], socket.socket.connect

    def guarded_connect(self, address):
        named.append(address)
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *words, **_: named.append(words) or [])
    picture = {"type": "image_url", "image_url": {"url": url}}
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": url}}}
    talks = [
        {"messages": [{"role": "user", "content": [picture]}]},
        {"messages": [{"role": "user", "content": url}], "max_tokens": 1},
        {"messages": MESSAGES, "response_format": schema},
        {"messages": MESSAGES, "tools": [{"type": "function", "function": {"name": url}}]},
        {"messages": MESSAGES, "metadata": {"webhook": url}, "max_tokens": 1},
        {"messages": MESSAGES, "model": url},
    ]
    client = TestClient(
        guarded,
        base_url="http://localhost",
        headers={"Authorization": f"Bearer {ADMIN}"},
        follow_redirects=False,
    )
    for talk in talks:
        assert client.post(CHAT, json={"model": "seedling", **talk}).status_code in (200, 400, 404)
    for body in ({"lora_name": url}, {"lora_name": "lora-0", "lora_path": url}, {"lora_name": "https://x/y"}):
        assert client.post("/v1/load_lora_adapter", json=body).status_code in (400, 404)
    for _, path, _ in routes(guarded):
        client.get(path, params={"url": url})
        client.post(
            path, json={"model": "seedling", "input": url, "prompt": url, "url": url, "max_tokens": 1}
        )
    assert calls() == 0
    assert not [address for address in named if "127.0.0.1" not in str(address)]


def test_s18_names_of_all_kinds_reach_neither_files_nor_other_names(guarded, guarded_root):
    client = TestClient(guarded, base_url="http://localhost", headers={"Authorization": f"Bearer {ADMIN}"})
    before = sorted(str(path) for path in guarded_root.rglob("*"))
    listed = [model["id"] for model in client.get("/v1/models").json()["data"]]
    names = [
        "'; DROP TABLE votes; --", '" OR 1=1 --', "lora-0' UNION SELECT 1", "=1+1", "@SUM(A1)", "lora-0\0",
        "lora-0\n", "%", "_", "*", "lora-%", "../adapters/lora-0", "..%2flora-0", "/etc/passwd", "lora-0/.",
        "LORA-0", " lora-0", "{{7*7}}", "${x}", "$(id)", "`id`", "|id", "\u202elora", "ｌｏｒａ-0", "a" * 256,
    ]  # fmt: skip
    asks = {CHAT: {"messages": MESSAGES}, TEXT: {"prompt": "a"}}
    asks |= {"/v1/embeddings": {"input": "a"}, "/v1/classify": {"input": "a"}}
    for name in names:
        for path, body in asks.items():
            answer = client.post(path, json={"model": name, **body})
            assert answer.status_code == 404 and answer.json()["error"]["param"] == "model", (path, name)
        for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
            assert client.post(path, json={"lora_name": name}).status_code in (400, 404), name
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == listed
    assert sorted(str(path) for path in guarded_root.rglob("*")) == before
    assert not [line for line in client.get("/metrics").text.splitlines() if "DROP" in line]


def test_s16_prompts_and_answers_are_logged_only_where_that_was_asked_for(guarded, web, tmp_path, caplog):
    served = guarded.state.served
    words = {"model": "seedling", "prompt": "Zanzibar pebble", "max_tokens": 6, "temperature": 0}
    handler = keep(tmp_path / "log", days=3)
    try:
        with caplog.at_level(logging.DEBUG):
            answer = web.post(TEXT, json=words).json()["choices"][0]["text"]
            web.post(TEXT, json={**words, "temperature": -1})
            web.post(TEXT, json={**words, "prompt": {"Zanzibar": 1}})
            web.get("/v1/models/x%0aFORGED")
        logged = (tmp_path / "log").read_text()
        for told in (logged, caplog.text, web.get("/metrics").text):
            assert "Zanzibar" not in told and answer not in told
        lines = [json.loads(line) for line in logged.splitlines()]  # one of JSON each: none can be forged
        assert [line["status"] for line in lines] == [200, 400, 400, 404] and "text" not in lines[0]
        assert (tmp_path / "log").stat().st_mode & 0o077 == 0 and handler.backupCount == 3
        served.log_texts = True
        web.post(TEXT, json=words)
        texts = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()[4:]]
        (text,) = (line for line in texts if "prompt" in line)
        assert "Zanzibar" in text["prompt"] and text["answer"] == answer and text["model"] == "seedling"
    finally:
        served.log_texts = False
        logging.getLogger("graft.serve").removeHandler(handler)
        handler.close()
