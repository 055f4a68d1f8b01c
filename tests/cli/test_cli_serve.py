"""graft serve as a process of its own: it starts, answers, and ends by a signal."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

pytest.importorskip("uvicorn")


def started(*words, **settings):
    """Start the command; return the process and the lines that it has said when it listens."""
    code = f"import sys; sys.argv = ['graft', 'serve', *{words!r}]\nfrom graft.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **settings},
    )
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("next"):
            break
    return process, said


def test_a_server_answers_over_http_and_ends_by_a_signal(tmp_path):
    process, said = started("seedling", "--port", "0", "--adapters", str(tmp_path))
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
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=60)[1]
    assert "every answer that was begun has ended" in rest and process.returncode in (0, 143)
    assert "Traceback" not in rest


def test_another_address_needs_a_key():
    process, said = started("seedling", "--host", "0.0.0.0", GRAFT_API_KEY="")
    process.wait(30)
    assert process.returncode == 2 and "without a key" in "".join(said)


def test_a_port_that_somebody_has_is_told_before_anything_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process, said = started("seedling", "--port", str(port))
        process.wait(30)
    assert process.returncode == 2 and "cannot listen" in "".join(said) and "loading" not in "".join(said)
