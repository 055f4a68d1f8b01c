"""A judge behind an address: asked once, tried again, kept in a file, and the key goes nowhere else."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from graft.errors import GraftError, Notice, UsageError
from graft.evaluate.endpoint import KEY, Endpoint, by_endpoint
from graft.evaluate.judges import Question

QUESTIONS = [Question(f"prompt {i} with {{braces}}", "first ж", "second") for i in range(6)]


@pytest.fixture(autouse=True)
def without_key(monkeypatch):
    monkeypatch.delenv(KEY, raising=False)


@contextmanager
def server(answer):
    """Serve chat completions on this machine.

    answer(count, body) -> (status, text of the message or bytes of the body[, headers]).
    Yields (address, requests): every request's path, headers and body.
    """
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append((self.path, dict(self.headers), body))
            status, said, *headers = answer(len(requests), body)
            raw = said if isinstance(said, bytes) else completion(said)
            self.send_response(status)
            for name, value in (headers[0] if headers else {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *args):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_port}/v1", requests
    finally:
        running.shutdown()
        running.server_close()
        thread.join()


def completion(text):
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


def judge(address, cache=None, form="pair", **settings):
    return by_endpoint(Endpoint(address, "gpt-x", cache, pause_s=0.0, workers=3, **settings), form)


def test_a_model_judges_and_sees_the_prompt_and_both_answers():
    with server(lambda count, body: (200, "because\n1")) as (address, requests):
        assert [one.verdict for one in judge(address)(QUESTIONS)] == ["1"] * 6
    path, headers, body = requests[0]
    asked = body["messages"][1]["content"]
    assert path == "/v1/chat/completions" and "Authorization" not in headers
    assert body["model"] == "gpt-x" and body["temperature"] == 0.0
    assert asked.index("{braces}") < asked.index("first ж") < asked.index("second")


def test_verdicts_come_back_in_the_order_of_the_questions():
    def answer(count, body):
        number = int(body["messages"][1]["content"].split("prompt ")[1][0])
        return 200, ["1", "2", "3", "no", "", "explained\n2"][number]

    with server(answer) as (address, _):
        said = judge(address)(QUESTIONS)
    assert [one.verdict for one in said] == ["1", "2", "tie", None, None, "2"]
    assert said[3].said == "no", "what is no verdict is kept"


def test_marks_are_asked_for_by_their_own_question():
    with server(lambda count, body: (200, "9 6.5\nbecause")) as (address, requests):
        said = judge(address, form="scores")(QUESTIONS[:1])
    assert said[0].scores == (9.0, 6.5) and said[0].verdict == "1"
    assert "from 1 to 10" in requests[0][2]["messages"][1]["content"]
    with pytest.raises(UsageError, match="form='marks'"):
        judge(address, form="marks")


TROUBLES = {
    "busy": (429, b"slow down", {"Retry-After": "0"}),
    "down": (503, b"", {}),
    "html": (200, b"<html>", {}),
    "other": (200, b'{"choices": []}', {}),
    "null": (200, b'{"choices": null}', {}),
    "list": (200, b'{"choices": [{"message": {"content": ["x"]}}]}', {}),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_request_is_tried_again(trouble):
    with server(lambda count, body: TROUBLES[trouble] if count < 3 else (200, "2")) as (address, requests):
        assert judge(address)(QUESTIONS[:1])[0].verdict == "2"
    assert len(requests) == 3


def test_a_server_that_hangs_is_given_up(tmp_path):
    done = threading.Event()

    def answer(count, body):
        done.wait(20)
        return 200, "1"

    with server(answer) as (address, requests):
        with pytest.raises(GraftError, match="gave no answer in 2 tries; TimeoutError"):
            judge(address, timeout_s=0.2, tries=2)(QUESTIONS[:1])
        done.set()
    assert len(requests) == 2


def test_a_refusal_ends_at_once_and_says_what_came(monkeypatch):
    monkeypatch.setenv(KEY, "secret-word")
    refused = pytest.raises(GraftError, match=r"in 1 tries; it answered 401 .*no such key")
    with server(lambda *_: (401, b'{"error": "no such key"}')) as (address, requests), refused as raised:
        judge(address)(QUESTIONS[:1])
    assert len(requests) == 1 and requests[0][1]["Authorization"] == "Bearer secret-word"
    assert "secret-word" not in str(raised.value)


@pytest.mark.parametrize("key", ["secret word", "secret\nword", "secretж"])
def test_a_key_that_cannot_be_one_is_not_shown(key, monkeypatch):
    monkeypatch.setenv(KEY, key)
    with pytest.raises(UsageError, match="no key has") as raised:
        Endpoint("http://127.0.0.1:1/v1", "m")
    assert "secret" not in str(raised.value)


def test_what_was_on_its_way_when_another_request_failed_is_kept(tmp_path):
    arrived = threading.Event()

    def answer(count, body):
        if "prompt 0" in body["messages"][1]["content"]:
            arrived.wait(20)
            return 400, b"no"
        arrived.set()
        time.sleep(0.2)
        return 200, "1"

    cache = tmp_path / "answers.cache"
    with server(answer) as (address, requests), pytest.raises(GraftError, match="answered 400"):
        judge(address, cache)(QUESTIONS)
    assert 1 <= len(cache.read_text().splitlines()) == len(requests) - 1


def test_a_redirect_is_not_followed(monkeypatch):
    monkeypatch.setenv(KEY, "secret-word")
    with (
        server(lambda *_: (200, "1")) as (elsewhere, stolen),
        server(lambda *_: (307, b"", {"Location": f"{elsewhere}/x"})) as (address, _),
        pytest.raises(GraftError, match="it answered 307"),
    ):
        judge(address)(QUESTIONS[:1])
    assert not stolen


def test_a_judging_that_was_stopped_goes_on_where_it_was(tmp_path):
    cache = tmp_path / "answers.cache"
    with server(lambda count, body: (200, "1") if count <= 4 else (400, b"enough")) as (address, requests):
        one = by_endpoint(Endpoint(address, "gpt-x", cache, pause_s=0.0, workers=1))
        with pytest.raises(GraftError, match="400"):
            one(QUESTIONS)
        assert len(cache.read_text().splitlines()) == 4
        requests.clear()
        with cache.open("a") as file:
            file.write('{"key": "half of a li')  # as a kill leaves it
        # Two are missing; the server counts from its first request again.
        with pytest.warns(Notice, match="1 lines of .* are not answers"):
            assert [said.verdict for said in one(QUESTIONS)] == ["1"] * 6
        assert len(requests) == 2
        requests.clear()
        with pytest.warns(Notice):
            assert [said.verdict for said in one(QUESTIONS)] == ["1"] * 6
        assert not requests, "the line after the torn one is whole"


def test_equal_questions_are_asked_once_and_another_model_again(tmp_path):
    cache = tmp_path / "answers.cache"
    with server(lambda count, body: (200, "2")) as (address, requests):
        assert len(judge(address, cache)(QUESTIONS[:1] * 3)) == 3
        judge(address, cache)(QUESTIONS[:1])
        assert len(requests) == 1
        by_endpoint(Endpoint(address, "other", cache))(QUESTIONS[:1])
        assert len(requests) == 2


def test_a_key_is_not_sent_without_encryption_to_another_machine(monkeypatch):
    Endpoint("http://example.org/v1", "m")
    monkeypatch.setenv(KEY, "secret-word")
    Endpoint("https://example.org/v1", "m")
    with pytest.raises(UsageError, match="is not encrypted") as raised:
        Endpoint("http://example.org/v1", "m")
    assert "secret-word" not in str(raised.value)
    for address in ("ftp://x", "http://", "127.0.0.1:8000", "http://[bad", "http://x:port"):
        with pytest.raises(UsageError, match="the endpoint"):
            Endpoint(address, "m")
