"""A studio on a port of this machine, for tests: over a real socket, in a thread of the test's process."""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn

from graft.serve.app import bare_app, create_app
from graft.serve.registry import Registry
from graft.serve.security import Keys
from graft.serve.studio.app import add_studio
from graft.serve.studio.state import Studio
from graft.serve.worker import Worker


@contextlib.contextmanager
def studio_server(home: Path, base: Any = None, keys: Keys | None = None, port: int = 0) -> Iterator[str]:
    """Yield the address of a studio.

    home: the folder of its runs and adapters.  base: the model that it serves as "seedling"; None: none.
    """
    worker = None
    if base is None:
        app = bare_app(keys=keys)
    else:
        registry = Registry(base, home)
        worker = Worker(base, registry, rows=8, waiting=32)
        app = create_app(worker, registry, name="seedling", keys=keys)
    add_studio(app, Studio(home, home / "votes.sqlite3", getattr(app.state, "served", None)))
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        if worker is not None:
            worker.close(20)


if __name__ == "__main__":  # to look at it: python tests/support/studio_server.py RUNS [PORT]
    import sys

    from graft.models.load import load

    with studio_server(
        Path(sys.argv[1]), load("seedling", dtype="fp32"), port=int(sys.argv[2]) if sys.argv[2:] else 8001
    ) as address:
        print(address, flush=True)
        threading.Event().wait()
