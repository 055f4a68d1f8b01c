"""What commands that serve over HTTP share: their port, who reaches it, and how they end."""

import os
import socket
import sys
from typing import Any

from graft.cli.say import talk
from graft.errors import UsageError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def guarded(host: str, key: str | None, key_env: str) -> None:
    """Raise UsageError for an address that others reach, without a key.  key_env: the key's variable."""
    if host not in LOOPBACK and not key:
        raise UsageError(
            f"--host {host} without a key: everybody who reaches this machine could use it",
            f"a key in the variable {key_env}",
            f"export {key_env}=... first, or leave --host out",
        )


def listening_on(host: str, port: int) -> socket.socket:
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


def uvicorn_for(command: str) -> Any:
    """Return the package of the server. Raises UsageError where the extra is missing."""
    try:
        import fastapi  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise UsageError(
            f"graft {command} without {error.name}", "the extra of the server", "pip install 'graftlm[serve]'"
        ) from None
    return uvicorn


def hosts(host: str) -> frozenset[str] | None:
    """Return the names in Host headers that are answered; None for all."""
    return frozenset([*LOOPBACK, "[::1]"]) if host in LOOPBACK else None


def address(host: str, listening: socket.socket) -> str:
    """Return the URL of a server."""
    return f"http://{'[' + host + ']' if ':' in host else host}:{listening.getsockname()[1]}"


def reach(host: str, key: str | None) -> str:
    """Say who reaches a server, and what they need."""
    who = "this machine only" if host in LOOPBACK else "every machine that reaches this one"
    return f"open to {who}; {'a key is needed' if key else 'no key is needed'}"


def stay_offline() -> None:
    """Let nothing of this process, nor of those that it starts, ask the Hub from now on."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    if (constants := sys.modules.get("huggingface_hub.constants")) is not None:
        constants.HF_HUB_OFFLINE = True  # it was read when the package was imported


def serve_until_signal(uvicorn: Any, app: Any, listening: socket.socket, worker: Any = None) -> None:
    """Serve until a signal, then let what was begun end.  worker: of the model, if one is served."""
    from graft.serve.connections import settings

    server = uvicorn.Server(settings(app, app.state.limits, timeout_graceful_shutdown=30))
    try:
        server.run(sockets=[listening])  # a signal ends it when the answers that were begun have ended
    finally:
        whole = worker is None or worker.close()
        talk(
            "every answer that was begun has ended"
            if whole
            else "some answers were broken off: they took too long"
        )
