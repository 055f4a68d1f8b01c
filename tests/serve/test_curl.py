"""The server as curl sees it: the commands of the documentation."""

import json
import shutil
import subprocess

import pytest

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")


@pytest.fixture
def curl(place):
    """Return a function that runs curl with a key, and returns the code of the answer and its text."""

    def run(path, *words, key=place["key"], body=None):
        sent = [] if body is None else ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
        who = ["-H", f"Authorization: Bearer {key}"] if key else []
        done = subprocess.run(
            [
                "curl",
                "-sS",
                "--max-time",
                "60",
                "-w",
                "\n%{http_code}",
                place["url"] + path,
                *who,
                *sent,
                *words,
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        text, _, code = done.stdout.rpartition("\n")
        return int(code), text

    return run


def test_models_are_listed(curl, place):
    code, text = curl("/v1/models")
    assert code == 200 and {model["id"] for model in json.loads(text)["data"]} == {
        "seedling",
        *place["names"],
    }


def test_a_chat_is_answered_whole_and_as_events(curl, place):
    messages = [{"role": "user", "content": "Write about a kettle."}]
    body = {"model": "lora-0", "messages": messages, "max_tokens": 8, "temperature": 0}
    code, text = curl("/v1/chat/completions", body=body)
    want = json.loads(text)["choices"][0]["message"]["content"]
    assert code == 200 and want
    code, text = curl("/v1/chat/completions", "--no-buffer", body={**body, "stream": True})
    events = [event.removeprefix("data: ") for event in text.strip().split("\n\n")]
    assert code == 200 and events[-1] == "[DONE]"
    pieces = [json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events[:-1]]
    assert "".join(pieces) == want


def test_refusals_are_json_too(curl):
    code, text = curl("/v1/models", key=None)
    assert code == 401 and json.loads(text)["error"]["code"] == "no_api_key"
    code, text = curl("/v1/completions", body={"model": "seedling", "prompt": 1})
    assert code == 400 and json.loads(text)["error"]["param"] == "prompt"
    code, text = curl("/nowhere")
    assert code == 404 and json.loads(text)["error"]["type"] == "not_found_error"


def test_a_body_that_is_too_large_is_refused_before_it_is_sent(curl, tmp_path):
    """curl asks first for bodies of more than a mebibyte (Expect: 100-continue)."""
    (tmp_path / "large").write_bytes(b" " * (2 << 20))
    code, text = curl("/v1/completions", "-H", "Content-Type: application/json", "-d", f"@{tmp_path}/large")
    assert code == 413 and json.loads(text)["error"]["code"] == "body_too_large"
