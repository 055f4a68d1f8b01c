"""How connections are held: uvicorn's own protocol, with the bounds that it lacks.

A client that sends its headers slowly, or nothing at all, is let go after `Limits.head_s`; one that does not
read what it is sent, after `Limits.stuck_s`. Of too many connections the first are told to come back, and the
rest are cut. What is no HTTP is refused in OpenAI's form. Bodies are bounded by `security.Gate`.
"""

import asyncio
import sys
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from graft.serve.failures import ApiError, too_large
from graft.serve.limits import Limits

SPARE = 64  # connections beyond the limit that are still told so
LINGER_S = 2.0  # for a client that was refused in the middle of its request to read why


def settings(app: Any, limits: Limits, **more: Any) -> uvicorn.Config:
    """Return the settings of a server that holds its connections within limits.  more: for uvicorn.Config."""
    held = type("Held", (Connection,), {"limits": limits})
    quiet: dict[str, Any] = {
        "log_level": "warning",
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
    }
    return uvicorn.Config(
        app,
        http=held,
        ws="none",
        timeout_keep_alive=limits.idle_s,
        h11_max_incomplete_event_size=limits.header_bytes,
        **(quiet | more),
    )


async def _full(scope: Any, receive: Any, send: Any) -> None:
    """Answer a request on a connection that is one too many."""
    refusal = ApiError(503, "too many connections are open", code="too_many_connections", retry_after_s=2)
    answer = refusal.response()
    answer.headers["Connection"] = "close"
    await answer(scope, receive, send)


class Connection(H11Protocol):
    """One connection of a client."""

    limits = Limits()
    _slow: asyncio.TimerHandle | None = None  # runs while a request is not whole
    _stuck: asyncio.TimerHandle | None = None  # runs while the client does not read
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        beyond = len(self.connections) - self.limits.connections
        if beyond > SPARE:
            return transport.abort()
        if beyond > 0:
            self.app = _full
        self._wait_for_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end("_slow", "_stuck")
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._end("_slow")
        elif self._slow is None and (before is None or before.response_complete):
            self._wait_for_headers()  # once: those that come byte by byte get no more time

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stuck is None:
            self._stuck = self.loop.call_later(self.limits.stuck_s, self.transport.abort)

    def resume_writing(self) -> None:
        self._end("_stuck")
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, in uvicorn's place."""
        if getattr(sys.exception(), "error_status_hint", 400) == 431:
            self._refuse(too_large("headers", self.limits.header_bytes))
        else:
            self._refuse(ApiError(400, "this is no HTTP request", code="not_http"))

    def _wait_for_headers(self) -> None:
        self._slow = self.loop.call_later(self.limits.head_s, self._too_slow)

    def _too_slow(self) -> None:
        self._slow = None
        if self.cycle is not None and not self.cycle.response_complete:
            return  # an answer is on its way
        if self.conn.our_state is h11.IDLE and self.conn.trailing_data[0]:
            within = f"within {self.limits.head_s:g} s"
            self._refuse(ApiError(408, f"the headers did not come {within}", code="too_slow"))
        else:
            self.transport.abort()

    def _refuse(self, error: ApiError) -> None:
        """Answer, and hear nothing more. Whoever still sends could lose the answer if all were closed now."""
        if self.transport.is_closing() or self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return self.transport.abort()
        answer = error.response()
        headers = [*answer.raw_headers, (b"connection", b"close")]
        reason = STATUS_PHRASES[error.status]
        events = (
            h11.Response(status_code=error.status, headers=headers, reason=reason),
            h11.Data(data=bytes(answer.body)),
            h11.EndOfMessage(),
        )
        self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        self._refused = True
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._end("_slow")
        self._slow = self.loop.call_later(LINGER_S, self.transport.abort)

    def _end(self, *waits: str) -> None:
        for name in waits:
            timer: asyncio.TimerHandle | None = getattr(self, name)
            if timer is not None:
                timer.cancel()
            setattr(self, name, None)
