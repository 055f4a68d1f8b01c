"""What the server refuses, and what its state is, as OpenAI's official client sees it."""

import asyncio
import math
import threading
import time

import pytest

openai = pytest.importorskip("openai")
import httpx  # noqa: E402  of openai
from openai_server import ADMIN, CHAT, LIMITS, listening, served_app  # noqa: E402

from graft.errors import AdapterError, DataError  # noqa: E402
from graft.serve.app import bare_app  # noqa: E402
from graft.serve.failures import ApiError  # noqa: E402
from graft.serve.jobs import Busy, Cancelled, Late  # noqa: E402
from graft.serve.limits import Limits  # noqa: E402
from graft.serve.registry import NoRoom  # noqa: E402
from graft.serve.security import ROLE, role  # noqa: E402

WRONG = [
    ({"temperature": -1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.01}, "top_p"),
    ({"n": 0}, "n"),
    ({"n": 9}, "n"),
    ({"presence_penalty": 2.5}, "presence_penalty"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 65}, "max_tokens"),
    ({"stop": ["a"] * 5}, "stop"),
    ({"stop": [""]}, "stop"),
    ({"stop": "x" * 65}, "stop"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logit_bias": {"0": 101}}, "logit_bias"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"messages": []}, "messages"),
    ({"extra_body": {"colour": "red"}}, "colour"),
    ({"extra_body": {"best_of": 2}}, "best_of"),
]


@pytest.mark.parametrize(("more", "param"), WRONG, ids=[str(more)[:40] for more, _ in WRONG])
def test_a_wrong_field_is_named(more, param, client):
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(**{"model": "seedling", "messages": CHAT, **more})
    assert param in str(wrong.value.param) + str(wrong.value.body["message"])


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(number, http):
    asked = '{"model": "seedling", "messages": [{"role": "user", "content": "x"}], "temperature": NUMBER}'
    body = asked.replace("NUMBER", number)
    answer = http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and "temperature" in answer.json()["error"]["message"]


def test_fields_without_effect_are_ignored(client):
    got = client.chat.completions.create(
        model="seedling", messages=CHAT, max_tokens=1, user="me", metadata={"a": "b"}, store=False
    )
    assert got.choices


def test_a_name_that_is_nearly_right_is_suggested(client):
    with pytest.raises(openai.BadRequestError, match="did you mean temperature") as wrong:
        client.chat.completions.create(model="seedling", messages=CHAT, extra_body={"temprature": 1})
    assert wrong.value.param == "temprature" and wrong.value.code == "unknown_parameter"
    message = {"role": "user", "content": "x", "nam": "me"}
    with pytest.raises(openai.BadRequestError, match="did you mean name") as deep:
        client.chat.completions.create(model="seedling", messages=[message])
    assert deep.value.param == "messages[0].nam" and deep.value.type == "invalid_request_error"


def test_pictures_are_refused_by_their_place(client):
    picture = {"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}
    with pytest.raises(openai.BadRequestError, match="text") as wrong:
        client.chat.completions.create(model="seedling", messages=[{"role": "user", "content": [picture]}])
    assert wrong.value.param == "messages[0].content[0].type"


ERRORS = [
    (ApiError(400, "no"), openai.BadRequestError),
    (ApiError(401, "no"), openai.AuthenticationError),
    (ApiError(403, "no"), openai.PermissionDeniedError),
    (ApiError(404, "no"), openai.NotFoundError),
    (Late("no"), openai.APIStatusError),
    (ApiError(409, "no"), openai.ConflictError),
    (ApiError(413, "no"), openai.APIStatusError),
    (ApiError(415, "no"), openai.APIStatusError),
    (Busy(3), openai.RateLimitError),
    (NoRoom("sql"), openai.InternalServerError),
    (MemoryError(), openai.InternalServerError),
    (Cancelled("stops"), openai.InternalServerError),
    (AdapterError("a", "b", "c"), openai.NotFoundError),
    (DataError("a", "b", "c"), openai.BadRequestError),
    (ZeroDivisionError("secret"), openai.InternalServerError),
]


@pytest.mark.parametrize(("error", "kind"), ERRORS, ids=[type(e).__name__ + k.__name__ for e, k in ERRORS])
def test_every_error_raises_the_clients_exception_of_its_kind(error, kind):
    """An application that only fails, so that each failure goes the whole way to the client."""
    app = bare_app()

    @app.get("/v1/models")
    @role("open")
    async def fail():
        raise error

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    with_client = openai.AsyncOpenAI(
        base_url="http://localhost/v1",
        api_key="none",
        max_retries=0,
        http_client=httpx.AsyncClient(transport=transport),
    )

    async def ask():
        return await with_client.models.list()

    with pytest.raises(kind) as raised:
        asyncio.run(ask())
    assert type(raised.value) is kind and "secret" not in str(raised.value)
    body = raised.value.body
    assert body.keys() == {"message", "type", "param", "code"} and body["type"].endswith("_error")
    if raised.value.status_code in (429, 503):
        assert int(raised.value.response.headers["Retry-After"]) >= 1


def test_an_answer_that_takes_too_long_is_not_asked_for_again(place):
    """The client repeats what was late, by default, twice: that would be three times the work."""
    base, limits = place["base"], Limits(max_tokens=8, timeout_s=0.0)
    with served_app(base, limits=limits) as app, listening(app) as url:
        worker = app.state.served.worker
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=2)
        with pytest.raises(openai.APIStatusError) as late:
            client.completions.create(model="seedling", prompt="The", max_tokens=8)
        assert late.value.status_code == 408 and worker.stats.jobs["", "late"] == 1


def test_an_error_in_a_stream_is_raised_by_the_client(place):
    base, limits = place["base"], Limits(max_tokens=8, timeout_s=0.0)
    with served_app(base, limits=limits) as app, listening(app) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.APIError, match="not done within"):
            list(client.chat.completions.create(model="seedling", messages=CHAT, stream=True))


def test_a_form_that_cannot_be_held_is_told(client):
    """A schema that llguidance takes, and gives up in the middle of: the answer would be no JSON."""
    pytest.importorskip("llguidance")
    schema = {"type": "string", "pattern": "^(a?){2000}a{2000}$"}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(openai.BadRequestError, match="cannot be held") as told:
        client.chat.completions.create(model="seedling", messages=CHAT, response_format=form)
    assert told.value.param == "response_format"
    with pytest.raises(openai.APIError, match="cannot be held"):
        list(
            client.chat.completions.create(model="seedling", messages=CHAT, response_format=form, stream=True)
        )
    with pytest.raises(openai.BadRequestError, match="min_tokens"):
        client.chat.completions.create(
            model="seedling",
            messages=CHAT,
            response_format={"type": "json_object"},
            extra_body={"min_tokens": 3},
        )


def test_unknown_models_and_keys_raise_the_clients_own_exceptions(client, place):
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="loro-0", messages=CHAT)
    assert missing.value.code == "model_not_found" and "lora-0" in str(missing.value)
    wrong = openai.OpenAI(base_url=f"{place['url']}/v1", api_key="nobody", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        wrong.models.list()
    assert httpx.get(f"{place['url']}/v1/models").status_code == 401


def test_adapters_are_loaded_and_unloaded_by_the_admin_alone(place, http, client):
    body = {"lora_name": "dora-1"}
    assert http.post("/v1/unload_lora_adapter", json=body).status_code == 403
    admin = {"Authorization": f"Bearer {ADMIN}"}
    assert http.post("/v1/unload_lora_adapter", json=body, headers=admin).status_code == 200
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="dora-1", messages=CHAT)
    for name in ("../adapters/dora-1", "/etc", "a/b", "dora-1\0", ""):
        assert http.post("/v1/load_lora_adapter", json={"lora_name": name}, headers=admin).status_code in (
            400,
            404,
        )
    path = {"lora_name": "dora-1", "lora_path": str(place["root"] / "dora-1")}
    assert http.post("/v1/load_lora_adapter", json=path, headers=admin).status_code == 400
    assert http.post("/v1/load_lora_adapter", json=body, headers=admin).status_code == 200
    assert client.chat.completions.create(model="dora-1", messages=CHAT, max_tokens=2).choices


def test_every_route_declares_its_role(place):
    routes = [
        route for route in place["app"].routes if hasattr(route, "endpoint") and route.path != "/openapi.json"
    ]
    assert len(routes) >= 9
    assert {getattr(route.endpoint, ROLE, None) for route in routes} == {"open", "infer", "admin"}
    opened = {route.path for route in routes if getattr(route.endpoint, ROLE) == "open"}
    assert opened == {"/health", "/ready"}


def test_state_is_told(http, client):
    client.completions.create(model="seedling", prompt="The", max_tokens=2)
    assert http.get("/health").json() == {"status": "ok"} and http.get("/ready").status_code == 200
    text = http.get("/metrics").text
    assert "graft_tokens_total" in text and 'outcome="done"' in text and not math.isnan(len(text))


def test_what_is_no_json_is_refused_before_it_is_parsed(http):
    path = "/v1/chat/completions"
    json_type = {"Content-Type": "application/json"}
    assert http.post(path, content=b"x" * (LIMITS.body_bytes + 1), headers=json_type).status_code == 413
    assert http.post(path, content=b'{"model":1}', headers={"Content-Type": "text/plain"}).status_code == 415
    assert http.post(path, content=b"[" * 100 + b"]" * 100, headers=json_type).status_code == 400
    assert http.post(path, content=b"{", headers=json_type).status_code == 400
    assert http.post(path, content=b'"\xff"', headers=json_type).status_code == 400


def test_foreign_hosts_and_origins_are_refused(http):
    assert http.get("/v1/models", headers={"Host": "evil.example"}).status_code == 403
    body = {"model": "seedling", "prompt": "x"}
    assert (
        http.post("/v1/completions", json=body, headers={"Origin": "http://evil.example"}).status_code == 403
    )
    assert "access-control-allow-origin" not in http.get("/v1/models").headers


def test_a_client_that_goes_away_frees_its_slot(place, http):
    served = place["app"].state.served
    body = {"model": "seedling", "prompt": "The", "max_tokens": 64, "min_tokens": 64, "stream": True}
    with http.stream("POST", "/v1/completions", json=body) as answer:
        next(answer.iter_bytes())
    until = time.monotonic() + 20
    while (served.worker.load or served.by_key) and time.monotonic() < until:
        time.sleep(0.02)
    assert served.worker.load == 0 and served.by_key == {}


def test_more_than_the_queue_holds_is_told_to_come_back(place, http):
    served = place["app"].state.served
    held = threading.Event()
    served.worker.call(held.wait)
    body = {"model": "seedling", "prompt": ["x"] * 8, "max_tokens": 1}
    try:
        answers = []
        threads = [
            threading.Thread(
                target=lambda: answers.append(http.post("/v1/completions", json=body, timeout=60))
            )
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 20
        while not answers and time.monotonic() < until:
            time.sleep(0.02)
    finally:
        held.set()
    for thread in threads:
        thread.join(60)
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused and all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
    assert len(refused) < 3
