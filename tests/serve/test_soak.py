"""Over HTTP, while adapters change: no answer is that of another version, and nothing is left behind."""

import hashlib
import random
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

httpx = pytest.importorskip("httpx")
uvicorn = pytest.importorskip("uvicorn")
from served import KINDS, write_adapters  # noqa: E402

from graft.models.load import load  # noqa: E402
from graft.serve.app import create_app  # noqa: E402
from graft.serve.registry import Registry  # noqa: E402
from graft.serve.security import Keys  # noqa: E402
from graft.serve.worker import Worker  # noqa: E402
from models import randomise  # noqa: E402

PROMPTS = ("The kettle", "Write a product")
FILES = ("adapter_config.json", "adapter_model.safetensors")
HEADERS = {"Authorization": "Bearer admin"}
NEW = 5


@pytest.fixture(scope="module")
def base():
    return load("seedling", quant="nf4", dtype="fp32")


@pytest.fixture(scope="module")
def stash(base, tmp_path_factory):
    """The folders of the versions of each adapter: six adapters that stay, and two that change."""
    folder = tmp_path_factory.mktemp("stash")
    stash = {name: [folder / name] for name in write_adapters(base, folder, 6)}
    for kind in ("lora", "prefix"):
        stash[f"changing-{kind}"] = [folder / f"{kind}-{seed}" for seed in (100, 200, 300)]
        for path in stash[f"changing-{kind}"]:
            randomise(base.attach("new", KINDS[kind]), int(path.name[-3:]), scale=0.3)
            base.adapters["new"].save(path)
            base.detach("new")
    return stash


@pytest.fixture(scope="module")
def alone(base, stash):
    """What each version writes alone: {(name, end of its fingerprint, prompt): text}."""
    texts = {}
    for name, versions in stash.items():
        for path in versions:
            digests = [hashlib.sha256((path / file).read_bytes()).hexdigest() for file in reversed(FILES)]
            short = hashlib.sha256("".join(digests).encode()).hexdigest()[:12]
            base.load_adapter(path, "alone")
            for prompt in PROMPTS:
                texts[name, short, prompt] = base.generate([prompt], ["alone"], max_new_tokens=NEW)[0]
            base.detach("alone")
    return texts


@pytest.fixture
def server(base, stash, tmp_path):
    """A server whose adapters do not all fit: (address, worker, the folder of adapters)."""
    root = tmp_path / "root"
    for name, versions in stash.items():
        shutil.copytree(versions[0], root / name)
    sizes = [(root / name / FILES[1]).stat().st_size for name in stash]
    worker = Worker(base, Registry(base, root, budget=max(sizes) + sum(sizes) // 2), rows=4)
    app = create_app(worker, worker.registry, name="base", keys=Keys.of(None, "admin"))
    running = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    port = running.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}", worker, root
    running.should_exit = True
    thread.join(30)
    worker.close(60)
    for name in list(base.adapters):
        base.detach(name)


@pytest.mark.parametrize("requests", [60, pytest.param(1500, marks=pytest.mark.slow)])
def test_no_answer_is_of_another_adapter_or_version_and_nothing_is_left(server, stash, alone, requests):
    url, worker, root = server
    changing = [name for name, versions in stash.items() if len(versions) > 1]
    plan, answered = random.Random(0), threading.Semaphore(0)
    asked = [(plan.choice(list(stash)), plan.choice(PROMPTS), plan.random() < 0.2) for _ in range(requests)]

    def ask(one):
        name, prompt, leaves = one
        body = {"model": name, "prompt": prompt, "temperature": 0, "max_tokens": NEW}
        try:
            if leaves:
                more = {"stream": True, "max_tokens": 200, "min_tokens": 100}
                with client.stream("POST", "/v1/completions", json=body | more) as response:
                    next(response.iter_lines(), None)
                return None
            response = client.post("/v1/completions", json=body)
            return name, prompt, response.status_code, response.json()
        finally:
            answered.release()

    def change():
        """Change an adapter for every three answers, in the midst of the others."""
        chance = random.Random(1)
        for number in range(requests):
            answered.acquire()
            if number % 3:
                continue
            name = chance.choice(changing)
            if chance.random() < 0.3:
                client.post("/v1/unload_lora_adapter", json={"lora_name": name}, headers=HEADERS)
            source = chance.choice(stash[name])
            for file in FILES:
                shutil.copy(source / file, root / name / f"{file}.new")
                (root / name / f"{file}.new").replace(root / name / file)
            status = client.post(
                "/v1/load_lora_adapter", json={"lora_name": name}, headers=HEADERS
            ).status_code
            assert status in (200, 503)  # 503: texts hold all the room

    limits = httpx.Limits(max_connections=9)
    web = httpx.Client(base_url=url, timeout=240, limits=limits, verify=False)
    with web as client, ThreadPoolExecutor(9) as threads:
        changes = threads.submit(change)
        answers = list(threads.map(ask, asked))
        changes.result(240)
    seen = set()
    for name, prompt, status, body in filter(None, answers):
        if status == 200:
            short = body["system_fingerprint"][-12:]
            assert body["choices"][0]["text"] == alone[name, short, prompt]
            seen.add(name)
        else:  # unloaded, or changed on the disk and not yet loaded by name
            assert name in changing and status in (400, 404), body
    assert seen >= set(stash) - set(changing)
    nobody = time.monotonic() + 60
    while worker.load and time.monotonic() < nobody:
        time.sleep(0.02)
    assert (worker.load, worker.slots, worker.registry.users) == (0, 0, 0)
