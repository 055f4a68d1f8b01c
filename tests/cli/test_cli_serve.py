"""graft serve as a process of its own: it starts, answers, and ends by a signal."""

import json
import re
import socket
import urllib.request

import pytest
from served_command import ended, started

pytest.importorskip("uvicorn")


def test_a_server_answers_over_http_and_ends_by_a_signal(tmp_path):
    process, said = started("serve", "seedling", "--port", "0", "--adapters", str(tmp_path))
    try:
        url = re.search(r"http://127\.0\.0\.1:\d+", "".join(said))[0]
        assert "this machine only; no key is needed" in "".join(said)
        body = json.dumps({"model": "seedling", "prompt": "The kettle", "max_tokens": 3, "temperature": 0})
        request = urllib.request.Request(
            f"{url}/v1/completions", body.encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] == 3
    finally:
        rest = ended(process)
    assert "every answer that was begun has ended" in rest and process.returncode in (0, 143)
    assert "Traceback" not in rest


def test_another_address_needs_a_key():
    process, said = started("serve", "seedling", "--host", "0.0.0.0", GRAFT_API_KEY="")
    process.wait(30)
    assert process.returncode == 2 and "without a key" in "".join(said)


def test_a_port_that_somebody_has_is_told_before_anything_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process, said = started("serve", "seedling", "--port", str(port))
        process.wait(30)
    assert process.returncode == 2 and "cannot listen" in "".join(said) and "loading" not in "".join(said)
