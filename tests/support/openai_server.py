"""A server of a seedling and six adapters on a port of this machine."""

import contextlib
import threading
import time

import uvicorn
from served import write_adapters

from graft.models.load import load
from graft.serve.app import create_app
from graft.serve.connections import settings
from graft.serve.limits import Limits
from graft.serve.registry import Registry
from graft.serve.security import Keys
from graft.serve.worker import Worker

KEY, OTHER, ADMIN = "infer-key-7f3a", "other-key-91bc", "admin-key-c0de"
CHAT = [{"role": "user", "content": "Write about a kettle."}]
LIMITS = Limits(max_tokens=64, timeout_s=60)
SMALL = Limits(
    body_bytes=4096,
    prompt_tokens=12,
    max_tokens=6,
    choices=3,
    stops=2,
    stop_chars=5,
    logit_bias=4,
    top_logprobs=3,
    per_key=4,
)


@contextlib.contextmanager
def listening(app, limits=LIMITS):
    """Yield the address at which an application answers, over a real socket."""
    server = uvicorn.Server(settings(app, limits, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)


@contextlib.contextmanager
def served_app(base, root=None, *, limits=LIMITS, keys=None, rows=4, waiting=8):
    """Yield an application that serves a base as "seedling", and the adapters under a root."""
    registry = Registry(base, root)
    worker = Worker(base, registry, rows=rows, waiting=waiting)
    try:
        yield create_app(worker, registry, name="seedling", keys=keys, limits=limits)
    finally:
        worker.close(20)


@contextlib.contextmanager
def open_place(root):
    """Yield the parts of a server of a seedling, whose adapters are written under a root."""
    base = load("seedling", quant="nf4", dtype="fp32")
    names = write_adapters(base, root, 6)
    with served_app(base, root, keys=Keys.of(KEY, ADMIN)) as app, listening(app) as url:
        yield {"url": url, "base": base, "names": names, "app": app, "root": root, "key": KEY, "admin": ADMIN}
