"""graft studio as a process of its own: what it says, what it answers, and how it ends."""

import json
import os
import re
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest
from served_command import ended, started

from graft.cli import call
from graft.cli.serving import stay_offline

pytest.importorskip("uvicorn")


@contextmanager
def studio(*words, **settings):
    """Yield the address of a studio, and what it has said; it ends by SIGTERM, without a complaint."""
    process, said = started("studio", *words, "--port", "0", **settings)
    try:
        yield re.search(r"http://[^ ]+/studio", "".join(said))[0], "".join(said)
    finally:
        rest = ended(process)
    assert process.returncode in (0, 143) and "every answer that was begun has ended" in rest
    assert "Traceback" not in rest


def answered(url, body=None, **headers):
    """Return the status and the text that an address answers."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.slow
def test_a_studio_without_a_model_shows_pages_of_runs_to_who_has_the_key(tmp_path):
    with studio("--runs", str(tmp_path / "new"), GRAFT_API_KEY="planted-secret") as (url, said):
        assert "pages   runs, new run, rows, leaderboard\n" in said
        assert "this machine only; a key is needed" in said and "planted-secret" not in said
        assert f"runs    {tmp_path}/new\n" in said and f"votes   {tmp_path}/new/votes.sqlite3\n" in said
        assert answered(f"{url}/runs")[0] == 200 and answered(f"{url}/chat")[0] == 404
        assert answered(f"{url}/api/chat")[0] == 401
        status, text = answered(f"{url}/api/chat", Authorization="Bearer planted-secret")
        assert status == 409 and "no_model" in text
        assert (tmp_path / "new").is_dir(), "new runs go there"


def test_a_studio_with_a_model_answers_beside_its_pages(tmp_path):
    with studio("seedling", "--runs", str(tmp_path)) as (url, said):
        assert "models  seedling\n" in said and "no key is needed" in said
        assert "chat, arena, leaderboard" in said
        asked = {"model": "seedling", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
        status, text = answered(f"{url.removesuffix('/studio')}/v1/chat/completions", asked)
        assert status == 200 and json.loads(text)["usage"]["completion_tokens"] <= 2
        status, text = answered(f"{url}/api/chat/load", {"name": "nobody"})
        assert status == 403 and "no_token" in text
        token = re.search('name="graft-token" content="([^"]+)"', answered(f"{url}/runs")[1])[1]
        status, text = answered(f"{url}/api/chat/load", {"name": "nobody"}, **{"X-Graft-Token": token})
        assert status == 404 and "nobody" in text


def test_nothing_asks_the_hub_once_it_is_told_to_stay_offline(monkeypatch):
    from huggingface_hub import constants, model_info
    from huggingface_hub.errors import OfflineModeIsEnabled

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    stay_offline()
    assert os.environ["HF_HUB_OFFLINE"] == "1"  # of runs that it starts
    with pytest.raises(OfflineModeIsEnabled):
        model_info("nobody/nothing")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--host", "0.0.0.0"], "without a key"),
        (["--adapters", "x"], "--adapters without a model"),
        (["--quant", "nf4"], "--quant without a model"),
        (["--port", "70000"], "--port"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_is_refused_at_once(words, part, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRAFT_API_KEY", raising=False)
    assert call(["studio", *words]) == 2
    said = capsys.readouterr().err
    assert part in said and "loading" not in said and not os.listdir(tmp_path)
