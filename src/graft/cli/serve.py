"""graft serve: one base and a folder of adapters over HTTP, in OpenAI's form."""

import json
import os
import socket
from pathlib import Path
from typing import Annotated, Any

import typer

from graft.cli.say import after, talk
from graft.cli.wait import begin
from graft.errors import UsageError
from graft.sizes import size

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def add_to(app: typer.Typer) -> None:
    app.command("serve", short_help="Serve a base and its adapters over HTTP, as OpenAI does.")(serve)


def serve(
    model: Annotated[str, typer.Argument(help="Folder, hub id, or seedling.")],
    adapters: Annotated[Path | None, typer.Option(help="A folder of adapters or runs.")] = None,
    host: Annotated[str, typer.Option(help="Address; another needs a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any that is free.")] = 8000,
    quant: Annotated[str | None, typer.Option(help="How to store the base: nf4, int8, none ...")] = None,
    name: Annotated[str | None, typer.Option(help="The name of the bare base as a model.")] = None,
    key_env: Annotated[str, typer.Option(help="Variable with the key that callers need.")] = "GRAFT_API_KEY",
    admin_key_env: Annotated[
        str, typer.Option(help="The same of the key that loads adapters.")
    ] = "GRAFT_ADMIN_KEY",
    pin: Annotated[list[str] | None, typer.Option(help="An adapter that is always in memory.")] = None,
    adapter_memory: Annotated[
        int | None, typer.Option(min=1, help="MiB for adapters; those used least go first.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, max=256, help="Texts that are written at once.")] = 8,
    queue: Annotated[int, typer.Option(min=0, help="Texts that may wait; more are told to come back.")] = 64,
    cache_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of all texts that are written at once.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 8192,
    timeout_s: Annotated[float, typer.Option(min=0.1, help="Seconds that an answer may take.")] = 600.0,
) -> None:
    """Serve MODEL and every adapter of a folder over HTTP, in OpenAI's form.

    Only this machine can reach it unless you say so.
    """
    key, admin = os.environ.get(key_env), os.environ.get(admin_key_env)
    if host not in LOOPBACK and not key:
        raise UsageError(
            f"--host {host} without a key: everybody who reaches this machine could use it",
            f"a key in the variable {key_env}",
            f"export {key_env}=... first, or leave --host out",
        )
    listening = _listening(host, port)
    begin(f"loading {model}", briefly=True)
    try:
        import uvicorn

        from graft.serve.app import create_app
    except ImportError as error:
        raise UsageError(
            f"graft serve without {error.name}", "the extra of the server", "pip install 'graftlm[serve]'"
        ) from None
    from graft.runs.open import open_model
    from graft.serve.limits import Limits
    from graft.serve.registry import Registry
    from graft.serve.security import Keys
    from graft.serve.worker import Worker
    from graft.sizes import MIB

    base = open_model(model, (), quant).base
    budget = None if adapter_memory is None else adapter_memory * MIB
    registry = Registry(base, adapters, budget, pin or [])
    worker = Worker(base, registry, rows=rows, waiting=queue, cache_tokens=cache_tokens)
    served = name or Path(base.name).name or "base"
    app = create_app(
        worker,
        registry,
        name=served,
        keys=Keys.of(key, admin),
        limits=Limits(max_tokens=max_tokens, timeout_s=timeout_s),
        hosts=frozenset([*LOOPBACK, "[::1]"]) if host in LOOPBACK else None,
    )
    listening.listen(256)  # whoever comes from now on waits until it is answered
    place = listening.getsockname()
    url = f"http://{'[' + host + ']' if ':' in host else host}:{place[1]}"
    talk(f"base    {served}   {base.count():,} parameters   {base.quant}")
    infos = registry.infos()
    kinds = ", ".join(sorted({info.methods[0] for info in infos}))
    talk(f"models  {served}" + (f" and {len(infos):,} adapters ({kinds})" if infos else ""))
    if budget is not None:
        talk(f"memory  {size(budget)} for adapters, {size(registry.bytes)} in use")
    reach = "this machine only" if host in LOOPBACK else "every machine that reaches this one"
    talk(f"open to {reach}; {'a key is needed' if key else 'no key is needed'}")
    talk(f"listens {url}/v1   (Ctrl-C ends it)")
    asked = json.dumps({"model": served, "messages": [{"role": "user", "content": "Hello"}]})
    header = f' -H "Authorization: Bearer ${key_env}"' if key else ""
    after(f"curl {url}/v1/chat/completions -H 'Content-Type: application/json'{header} -d '{asked}'")
    _run(uvicorn, app, listening, worker)


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that is bound, before anything slow. Raises UsageError where that fails."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host}:{port} ({error.strerror or error})",
            "an address of this machine, and a port that nobody has",
            "give another --port, or 0 for any that is free",
        ) from None
    return bound


def _run(uvicorn: Any, app: Any, listening: socket.socket, worker: Any) -> None:
    """Serve until a signal."""
    from graft.serve.limits import Limits

    limits = Limits()
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        limit_concurrency=limits.connections,
        timeout_keep_alive=limits.idle_s,
        timeout_graceful_shutdown=30,
        h11_max_incomplete_event_size=16 * 1024,
        server_header=False,
    )
    server = uvicorn.Server(config)
    try:
        server.run(sockets=[listening])  # a signal ends it when the answers that were begun have ended
    finally:
        whole = worker.close()
        talk(
            "every answer that was begun has ended"
            if whole
            else "some answers were broken off: they took too long"
        )
