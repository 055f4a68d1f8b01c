"""Who may ask for what, and what is refused before it is parsed.

Every route declares a role: open, infer or admin; what changes something from a page of the studio: vote or
manage. Keys are compared in constant time, and are never written anywhere. On the loopback address the infer
role needs no key unless one was set; admin always needs one; vote and manage need the token of the server's
own pages, which other sites cannot read, or the key of infer and of admin.
"""

import asyncio
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from graft.serve.failures import ApiError, too_large
from graft.serve.limits import Limits
from graft.serve.logs import Receive, Scope, Send

# A text that is never closed matches too: trying again at each of its quotes would take for ever.
STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
HALF = re.compile(rb"\\u[dD][89a-fA-F]")  # of a character that JSON writes as two
BRACKETS = re.compile(rb"[\[\]{}]")
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?")
ROLE = "graft_role"  # attribute of a route's function
OF_PAGES = {"vote": "infer", "manage": "admin"}  # whose key does instead of a page's token
UPLOADS = "/studio/api/files/"  # routes below it read the body themselves, with a bound of their own


@dataclass(frozen=True)
class Keys:
    """The digests of the keys of each role; none of a role: infer is open, admin is closed."""

    infer: tuple[bytes, ...] = ()
    admin: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, infer: str | None, admin: str | None) -> "Keys":
        """Return the digests of keys that are given as text."""
        given = ((key or "").strip() for key in (infer, admin))  # headers are read without blanks around them
        return cls(*((_digest(key),) if key else () for key in given))

    def who(self, given: str | None) -> set[str]:
        """Return the roles that a key gives."""
        found = _digest(given or "")
        matches = {
            role: [hmac.compare_digest(found, key) for key in getattr(self, role)]
            for role in ("infer", "admin")
        }
        roles = {role for role, same in matches.items() if given is not None and any(same)}
        if "admin" in roles or not self.infer:
            roles.add("infer")
        return roles


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


SALT = secrets.token_bytes(16)


def _named(key: str | None) -> str:
    """Return what a caller is called in logs: it tells callers apart, and nothing about their keys."""
    return hmac.digest(SALT, _digest(key or ""), "sha256").hex()[:12]


def role(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare who may call a route: open, infer, admin, vote or manage."""

    def mark(function: Callable[..., Any]) -> Callable[..., Any]:
        setattr(function, ROLE, name)
        return function

    return mark


def check_role(request: Request) -> None:
    """Raise ApiError where the key of a request does not give the role of its route."""
    route = request.scope.get("route")
    wanted = getattr(getattr(route, "endpoint", None), ROLE, None)
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    key = given.strip() if scheme.lower() == "bearer" and given.strip() else None
    request.state.key = _named(key)
    if wanted == "open":
        return
    keys: Keys = request.app.state.keys
    if wanted in OF_PAGES:
        token, sent = request.app.state.token, request.headers.get("x-graft-token", "")
        if token is not None and hmac.compare_digest(_digest(token), _digest(sent)):
            if wanted == "vote" or not keys.admin:
                return
        elif not keys.infer:
            raise ApiError(403, "only the pages of this server may ask for that", code="no_token")
        wanted = OF_PAGES[wanted]
    if wanted in keys.who(key):
        return
    if key is None:
        raise ApiError(
            401, "no API key was given: send the header Authorization: Bearer KEY", code="no_api_key"
        )
    if wanted == "admin" and "infer" in keys.who(key):
        raise ApiError(403, "this key may not change what is served", code="forbidden")
    raise ApiError(401, "this API key is not known", code="invalid_api_key")


class Gate:
    """Refuses, before anything is parsed: foreign hosts and origins, other types than JSON, headers and
    bodies that are too large, too slow or nested too deeply. An ASGI application around another one."""

    def __init__(
        self, app: Any, limits: Limits, hosts: frozenset[str] | None, origins: frozenset[str]
    ) -> None:
        self._app, self._limits, self._hosts, self._origins = app, limits, hosts, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = {key.lower(): value for key, value in scope["headers"]}
        try:
            self._check_headers(scope, headers)
            if scope["method"] == "PUT" and scope["path"].startswith(UPLOADS):
                receive = self._patient(receive)
            elif scope["method"] in ("POST", "PUT", "PATCH", "DELETE"):
                async with asyncio.timeout(self._limits.body_s):
                    receive = await self._body(headers, receive)
        except ApiError as error:
            return await error.response()(scope, receive, send)
        except TimeoutError:
            late = ApiError(408, f"the body did not come within {self._limits.body_s:g} s", code="too_slow")
            return await late.response()(scope, receive, send)
        except ConnectionError:
            return  # nobody is there to be answered
        await self._app(scope, receive, send)

    def _check_headers(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        most = self._limits.header_bytes
        if sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > most:  # ": " and the end
            raise too_large("headers", most)
        address = headers.get(b"host", b"").decode("latin-1").lower()
        host = _hostname(address)
        if self._hosts is not None and host not in self._hosts:
            raise ApiError(403, f"the host {host[:80]!r} is not served here", code="foreign_host")
        origin = headers.get(b"origin", b"").decode("latin-1")
        ours = {f"http://{address}", f"https://{address}", *self._origins}
        if origin and scope["method"] not in ("GET", "HEAD") and origin not in ours:
            raise ApiError(403, f"requests of pages of {origin[:80]!r} are refused", code="foreign_origin")

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> Receive:
        """Read the body as far as it may go, and return what hands it on."""
        most = self._limits.body_bytes
        stated = headers.get(b"content-length", b"0")
        if not stated.isdigit() or len(stated) > 15 or int(stated) > most:
            raise too_large("body", most)
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionError
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > most:
                raise too_large("body", most)
        kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if body and kind != b"application/json":
            raise ApiError(415, "the body is no JSON: send Content-Type: application/json", code="not_json")
        if body:
            check_json(bytes(body), self._limits.depth)
        given = False

        async def again() -> Any:
            nonlocal given
            if given:
                return await receive()  # a disconnect
            given = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        return again

    def _patient(self, receive: Receive) -> Receive:
        """Return what receives the pieces of an upload, and waits only so long for the next one."""

        async def piece() -> Any:
            try:
                async with asyncio.timeout(self._limits.idle_s):
                    return await receive()
            except TimeoutError:
                within = f"within {self._limits.idle_s} s"
                raise ApiError(408, f"nothing more of the file came {within}", code="too_slow") from None

        return piece


def check_json(body: bytes, deepest: int) -> None:
    """Raise ApiError for a body that is no JSON, or nested too deeply to be parsed."""
    depth = 0
    for bracket in BRACKETS.finditer(STRING.sub(b"", body)):
        depth += 1 if bracket.group() in b"[{" else -1
        if depth > deepest:
            raise ApiError(400, f"the body is nested more than {deepest} deep", code="too_deep")
    try:
        value = json.loads(body.decode())  # which would take UTF-16 too, where no bracket was counted
        if HALF.search(body):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ApiError(400, "a text has half a character, like \\ud800", code="not_json") from None
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is no JSON: {str(error)[:120]}", code="not_json") from None


def _hostname(host: str) -> str:
    """Return the name in a Host header, without its port; "" for what is none."""
    found = HOST.fullmatch(host)
    return found[1] if found else ""
