"""What a server writes down: one line of JSON for each request, and texts only where its owner wants them.

Prompts, answers and keys are in no line, unless `Served.log_texts` was set. What is written to a file is for
its owner's eyes, begins a new file at midnight (UTC), and is deleted after some days.
"""

import json
import logging
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping
from logging.handlers import TimedRotatingFileHandler
from pathlib import Path
from typing import Any

log = logging.getLogger("graft.serve")
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class _Private(TimedRotatingFileHandler):
    """A file that only its owner may read, also the new one of each day."""

    def _open(self) -> Any:
        os.close(os.open(self.baseFilename, os.O_CREAT | os.O_WRONLY, 0o600))
        return super()._open()


def keep(file: Path, days: int) -> logging.Handler:
    """Write what the server logs to a file, and keep it so many days beside the current one.

    Returns the handler, which `logging` closes at the end. Raises OSError.
    """
    handler = _Private(file, when="midnight", backupCount=days, encoding="utf-8", utc=True)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    return handler


class Logged:
    """Logs every request and how it ended, without texts and keys. An ASGI application around another one."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        begun, status = time.monotonic(), 0
        state = scope.setdefault("state", {})

        async def sent(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sent)
        finally:
            facts = {
                "method": scope["method"],
                "path": scope["path"][:500],
                "status": status,
                "seconds": round(time.monotonic() - begun, 4),
                "key": state.get("key"),
            }
            log.info(json.dumps(facts))


def log_text(key: str, model: str, tokenizer: Any, prompt: list[int], answer: str) -> None:
    """Log a prompt, as the model read it, and what it wrote."""
    log.info(json.dumps({"key": key, "model": model, "prompt": tokenizer.decode(prompt), "answer": answer}))
