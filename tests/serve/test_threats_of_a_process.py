"""Threats S8 and S15: what `graft serve` as a process of its own listens on, and where its secrets end up."""

import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn")

# Planted in the environment, in headers, in an address, and in fields that are ignored or wrong.
ENVIRONMENT = (
    "GRAFT_API_KEY", "GRAFT_ADMIN_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY",
    "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "SOME_PASSWORD_SECRET", "MY_KEY",
)  # fmt: skip
HEADERS = ("Authorization", "X-Api-Key", "Cookie", "Proxy-Authorization", "X-Graft-Token")
FIELDS = ("user", "metadata", "prompt_cache_key", "password")
SECRETS = {
    name: f"s3cret-{hashlib.sha256(name.encode()).hexdigest()[:20]}"
    for name in (*ENVIRONMENT, *HEADERS, *FIELDS, "query")
}


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    """A server with all secrets: yields (process, address, folder that holds all it can write)."""
    home = tmp_path_factory.mktemp("home")
    (home / "adapters").mkdir()
    words = ["graft", "serve", "seedling", "--port", "0", "--adapters", str(home / "adapters")]
    planted = {name: SECRETS[name] for name in ENVIRONMENT}
    with (home / "said").open("w") as said:
        running = subprocess.Popen(
            [sys.executable, "-c", f"import sys; sys.argv = {words!r}\nfrom graft.cli import main; main()"],
            stderr=said,
            stdout=said,
            cwd=home,
            env={**os.environ, **planted, "HOME": str(home), "TMPDIR": str(home)},
        )
    try:
        while "next" not in (told := (home / "said").read_text()):
            assert running.poll() is None, told
            try:
                running.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
        yield running, re.search(r"http://127\.0\.0\.1:\d+", told)[0], home
    finally:
        if running.poll() is None:
            running.send_signal(signal.SIGTERM)
            running.wait(60)


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="sockets are listed by Linux")
def test_s08_only_this_machine_is_listened_to(process):
    running, url, _ = process
    folder = Path(f"/proc/{running.pid}/fd")
    inodes = {
        found[1] for fd in folder.iterdir() if (found := re.match(r"socket:\[(\d+)\]", os.readlink(fd)))
    }
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{running.pid}/net/{table}").read_text().splitlines()[1:]:
            cells = line.split()
            if cells[3] == "0A" and cells[9] in inodes:
                listening.append(cells[1])
    port = int(url.rpartition(":")[2])
    assert listening == [f"{socket.inet_aton('127.0.0.1')[::-1].hex().upper()}:{port:04X}"]


def test_s15_secrets_are_in_no_answer_log_argument_or_file(process):
    running, url, home = process
    answers = []
    chat = {"model": "seedling", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    fields = {"user": SECRETS["user"], "metadata": {"k": SECRETS["metadata"]}}
    fields["prompt_cache_key"] = SECRETS["prompt_cache_key"]
    wrong = {name: f"Bearer {SECRETS[name]}" for name in HEADERS}
    with httpx.Client(base_url=url, timeout=60) as client:
        for key in ("GRAFT_API_KEY", "GRAFT_ADMIN_KEY", None):
            right = {**wrong, "Authorization": f"Bearer {SECRETS[key]}"} if key else wrong
            for path in ("/health", "/ready", "/metrics", "/v1/models", "/openapi.json", "/nowhere"):
                answers.append(client.get(path, headers=right, params={"api_key": SECRETS["query"]}))
            for body in (
                {**chat, **fields},
                {**chat, "password": SECRETS["password"]},
                {**chat, "n": "password"},
            ):
                answers.append(client.post("/v1/chat/completions", json=body, headers=right))
            for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
                answers.append(client.post(path, json={"lora_name": "nobody"}, headers=right))
    codes = {answer.status_code for answer in answers}
    assert {200, 400, 401, 403, 404} <= codes, codes
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 60) as bare:
        bare.sendall(f"NONSENSE {SECRETS['query']}\r\nAuthorization {SECRETS['MY_KEY']}\r\n\r\n".encode())
        raw = bare.makefile("rb").read()
    assert b" 400 " in raw and b"not_http" in raw
    arguments = Path(f"/proc/{running.pid}/cmdline").read_bytes() if Path("/proc").exists() else b""
    running.send_signal(signal.SIGTERM)
    running.wait(60)
    told = b"\n".join(repr(answer.headers).encode() + answer.content for answer in answers) + raw + arguments
    files = b"\n".join(file.read_bytes() for file in sorted(home.rglob("*")) if file.is_file())
    assert b"every answer that was begun has ended" in files  # what it said is among them
    for secret in SECRETS.values():
        for form in (secret, hashlib.sha256(secret.encode()).hexdigest()[:12]):
            assert form.encode() not in told + files
