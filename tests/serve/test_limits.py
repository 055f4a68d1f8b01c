"""Threats S11 to S13: how much one request, and all of them together, may ask of the server."""

import json
import threading

import pytest

pytest.importorskip("uvicorn")
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from openai_server import KEY, OTHER, SMALL, served_app

from graft.serve import security
from graft.serve.limits import Limits
from graft.serve.security import check_json
from graft.serve.states import MOST

JSON = {"Content-Type": "application/json"}
MESSAGES = [{"role": "user", "content": "Hi"}]
TEXT, CHAT = "/v1/completions", "/v1/chat/completions"


def padded(size):
    """Return a right body of so many bytes."""
    body = json.dumps({"model": "seedling", "prompt": "The", "max_tokens": 1}).encode()
    return body[:-1] + b" " * (size - len(body)) + b"}"


@pytest.mark.parametrize("beyond", [0, 1])
@pytest.mark.parametrize("chunked", [False, True], ids=["with its length", "in chunks"])
def test_s11_bodies_have_a_largest_size(web, beyond, chunked):
    body = padded(SMALL.body_bytes + beyond)
    pieces = (body[i : i + 1000] for i in range(0, len(body), 1000))
    answer = web.post(TEXT, content=pieces if chunked else body, headers=JSON)
    assert answer.status_code == (413 if beyond else 200)


@pytest.mark.parametrize("beyond", [0, 1])
def test_s11_headers_have_a_largest_size(web, beyond):
    sent = web.get("/health").request.headers
    room = SMALL.header_bytes - sum(len(name) + len(value) + 4 for name, value in sent.raw) - len("a: \r\n")
    answer = web.get("/health", headers={"a": "x" * (room + beyond)})
    assert answer.status_code == (431 if beyond else 200)


@pytest.mark.parametrize("beyond", [0, 1])
def test_s11_json_has_a_largest_depth_and_conversations_a_length(web, beyond):
    depth = SMALL.depth + beyond
    answer = web.post(TEXT, content=b"[" * depth + b"]" * depth, headers=JSON)
    assert answer.json()["error"]["code"] == ("too_deep" if beyond else "invalid_value")
    big = Limits()
    talk = [{"role": "user", "content": ""}] * (big.messages + beyond)
    answer = web.post(CHAT, json={"model": "nobody", "messages": talk, "max_tokens": 1})
    assert answer.status_code in (413,) or answer.json()["error"]["param"] == (
        "messages" if beyond else "model"
    )


HOSTILE_JSON = {
    "a text of quotes that is never closed": (b'"' + b'\\"' * 500_000, 400),
    "brackets in a text": (b'{"a": "' + b"[{" * 200_000 + b'"}', 200),
    "brackets behind an escaped quote": (b'["\\"' + b"[" * 1000 + b'"]', 200),
    "deep behind a text": (b'["a", ' + b"[" * 1000 + b"]" * 1001, 400),
    "a number of a million digits": (b"1" * 1_000_000, 400),
    "half a character": (b'"\\ud800"', 400),
    "a whole character": (b'"\\ud83d\\ude00"', 200),
    "a backslash at the end": (b'"\\', 400),
    "a byte order mark": (b"\xef\xbb\xbf{}", 400),
    "bytes that are no text": (b'"\xff"', 400),
}


@pytest.mark.parametrize("name", sorted(HOSTILE_JSON))
def test_s11_hostile_json_is_judged_in_one_pass(name):
    """Each of a megabyte; where a pass were begun again at every quote, the first would take hours."""
    body, want = HOSTILE_JSON[name]
    if want == 200:
        check_json(body, 32)
        return
    with pytest.raises(security.ApiError) as refused:
        check_json(body, 32)
    assert refused.value.status == want


BOUNDS = {  # at the bound and one beyond it: (path, fields), and the parameter that is named
    "prompt_tokens": (lambda n: (TEXT, {"prompt": [5] * (SMALL.prompt_tokens + n)}), "prompt"),
    "max_tokens": (lambda n: (TEXT, {"max_tokens": SMALL.max_tokens + n}), "max_tokens"),
    "max_tokens of chat": (
        lambda n: (CHAT, {"max_completion_tokens": SMALL.max_tokens + n}),
        "max_completion_tokens",
    ),
    "n": (lambda n: (TEXT, {"n": SMALL.choices + n}), "n"),
    "prompts": (lambda n: (TEXT, {"prompt": ["a"] * (SMALL.choices + n)}), "prompt"),
    "stops": (lambda n: (TEXT, {"stop": ["ab", "bc", "cd"][: SMALL.stops + n]}), "stop"),
    "stop_chars": (lambda n: (TEXT, {"stop": "z" * (SMALL.stop_chars + n)}), "stop"),
    "logit_bias": (lambda n: (TEXT, {"logit_bias": {str(i): 0 for i in range(4 + n)}}), "logit_bias"),
    "top_logprobs": (lambda n: (CHAT, {"logprobs": True, "top_logprobs": 3 + n}), "top_logprobs"),
    "logprobs": (lambda n: (TEXT, {"logprobs": SMALL.top_logprobs + n}), "logprobs"),
    "embedded texts": (lambda n: ("/v1/embeddings", {"input": ["a"] * (MOST + n)}), "input"),
    "embedded tokens": (
        lambda n: ("/v1/embeddings", {"input": [[5] * (SMALL.prompt_tokens + n)]}),
        "input",
    ),
    "names": (lambda n: (TEXT, {"model": "x" * (256 + n)}), "model"),
}


@pytest.mark.parametrize("bound", sorted(BOUNDS))
def test_s12_work_is_bounded(web, bound):
    for beyond in (0, 1):
        path, fields = BOUNDS[bound][0](beyond)
        need = {"input": "a"} if path.endswith("s") and "embed" in path else {"max_tokens": 1, "prompt": "a"}
        if path == CHAT:
            need = {"messages": MESSAGES, **({} if "max_completion_tokens" in fields else {"max_tokens": 1})}
        answer = web.post(path, json={"model": "seedling", **need, **fields})
        if beyond:
            assert answer.status_code == 400 and answer.json()["error"]["param"] == BOUNDS[bound][1]
        else:
            assert answer.status_code == (404 if bound == "names" else 200), answer.text


def test_s12_a_text_ends_where_the_context_ends(guarded):
    room, base = 3, guarded.state.served.base
    with served_app(base, limits=Limits(max_tokens=64)) as app:
        client = TestClient(app, base_url="http://localhost")
        ids = [5] * (base.model.config.max_position_embeddings - room)
        asked_for = {"model": "seedling", "max_tokens": 64, "min_tokens": 64, "temperature": 0}
        answer = client.post(TEXT, json={**asked_for, "prompt": ids}).json()
        assert answer["usage"]["completion_tokens"] == room
        assert answer["choices"][0]["finish_reason"] == "length"
        whole = client.post(TEXT, json={**asked_for, "prompt": ids + [5] * room})
        assert whole.status_code == 400 and whole.json()["error"]["code"] == "context_length_exceeded"


def test_s12_one_key_that_floods_leaves_the_others_their_share(guarded):
    """What others wait for is counted in steps of the engine, which no slow machine changes."""
    worker = guarded.state.served.worker
    held, answers = threading.Event(), []
    worker.call(held.wait)
    body = {"model": "seedling", "prompt": "The", "max_tokens": 4, "min_tokens": 4}

    def ask(key):
        client = TestClient(guarded, base_url="http://localhost")
        answer = client.post(TEXT, json=body, headers={"Authorization": f"Bearer {key}"})
        answers.append((key, answer, worker.stats.steps))

    steps = worker.stats.steps
    threads = [threading.Thread(target=ask, args=(key,)) for key in [KEY] * 20 + [OTHER]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(0.01 if len(answers) < 16 else 0)
    while sum(key == KEY for key, _, _ in answers) < 20 - SMALL.per_key or worker.load < SMALL.per_key + 1:
        for thread in threads:
            thread.join(0.01)
    held.set()
    for thread in threads:
        thread.join(60)
    by_key = {key: [answer.status_code for k, answer, _ in answers if k == key] for key in (KEY, OTHER)}
    assert by_key[OTHER] == [200] and sorted(by_key[KEY]) == [200] * 4 + [429] * 16
    refused = [answer for _, answer, _ in answers if answer.status_code == 429]
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
    (until,) = (count for key, _, count in answers if key == OTHER)
    assert until - steps <= 3 * 4 + 3  # at most three times its own four steps, and a chunk for each prompt


NUMBERS = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "min_p", "repetition_penalty")
WHOLE = ("max_tokens", "n", "top_k", "min_tokens", "logprobs")
NOT_NUMBERS = st.sampled_from(["NaN", "Infinity", "-Infinity", "1e999", "-1e999", '"1"', "[]", "{}", "true"])
BELOW = st.floats(-1e300, -2.0001).map(repr)


@settings(max_examples=60)
@given(field=st.sampled_from(NUMBERS), value=NOT_NUMBERS | BELOW)
def test_s13_what_is_no_number_of_the_range_is_named(web, field, value):
    body = f'{{"model": "seedling", "prompt": "a", "max_tokens": 1, "{field}": {value}}}'
    answer = web.post(TEXT, content=body, headers=JSON)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == field


@settings(max_examples=60)
@given(
    field=st.sampled_from(WHOLE),
    value=NOT_NUMBERS | st.integers(-(10**30), -2).map(str) | st.floats(0.1, 0.9).map(repr),
)
def test_s13_what_is_no_whole_number_of_the_range_is_named(web, field, value):
    body = f'{{"model": "seedling", "prompt": "a", "temperature": 0, "{field}": {value}}}'
    answer = web.post(TEXT, content=body, headers=JSON)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == field


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e-9])
def test_s13_a_temperature_that_divides_to_nothing_is_greedy(web, temperature):
    body = {"model": "seedling", "prompt": "The kettle", "max_tokens": 6}
    greedy = web.post(TEXT, json={**body, "temperature": 0}).json()["choices"]
    assert web.post(TEXT, json={**body, "temperature": temperature}).json()["choices"] == greedy
    warm = web.post(TEXT, json={**body, "top_k": 1, "temperature": 2}).json()["choices"]
    assert warm == greedy
