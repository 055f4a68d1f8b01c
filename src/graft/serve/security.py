"""Who may ask for what, and what is refused before it is parsed.

Every route declares a role: open, infer or admin; what changes something from a page of the studio: vote or
manage. Keys are compared in constant time, and are never written anywhere. On the loopback address the infer
role needs no key unless one was set; admin always needs one; vote and manage need the token of the server's
own pages, which other sites cannot read, or the key of infer and of admin.
"""

import hashlib
import hmac
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from graft.serve.failures import ApiError
from graft.serve.limits import Limits

STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
BRACKETS = re.compile(rb"[\[\]{}]")
ROLE = "graft_role"  # attribute of a route's function
OF_PAGES = {"vote": "infer", "manage": "admin"}  # whose key does instead of a page's token
UPLOADS = "/studio/api/files/"  # routes below it read the body themselves, with a bound of their own
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


@dataclass(frozen=True)
class Keys:
    """The digests of the keys of each role; none of a role: infer is open, admin is closed."""

    infer: tuple[bytes, ...] = ()
    admin: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, infer: str | None, admin: str | None) -> "Keys":
        """Return the digests of keys that are given as text."""
        return cls(*(() if key is None else (_digest(key),) for key in (infer, admin)))

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
    return hashlib.sha256(key.encode()).digest()


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
    if wanted == "open":
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    key = given.strip() if scheme.lower() == "bearer" and given.strip() else None
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
        request.state.key = hashlib.sha256((key or "").encode()).hexdigest()[:12]
        return
    if key is None:
        raise ApiError(
            401, "no API key was given: send the header Authorization: Bearer KEY", code="no_api_key"
        )
    if wanted == "admin" and "infer" in keys.who(key):
        raise ApiError(403, "this key may not change what is served", code="forbidden")
    raise ApiError(401, "this API key is not known", code="invalid_api_key")


class Gate:
    """Refuses, before anything is parsed: foreign hosts and origins, other types than JSON, bodies that are
    too large or nested too deeply. An ASGI application around another one."""

    def __init__(
        self, app: Any, limits: Limits, hosts: frozenset[str] | None, origins: frozenset[str]
    ) -> None:
        self._app, self._limits, self._hosts, self._origins = app, limits, hosts, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = {key.lower(): value for key, value in scope["headers"]}
        try:
            self._check_headers(scope, headers)
            streamed = scope["method"] == "PUT" and scope["path"].startswith(UPLOADS)
            if scope["method"] in ("POST", "PUT", "PATCH", "DELETE") and not streamed:
                receive = await self._body(headers, receive)
        except ApiError as error:
            return await error.response()(scope, receive, send)
        await self._app(scope, receive, send)

    def _check_headers(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
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
        if not stated.isdigit() or int(stated) > most:
            raise ApiError(413, f"the body has more than {most:,} bytes", code="body_too_large")
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > most:
                raise ApiError(413, f"the body has more than {most:,} bytes", code="body_too_large")
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


def check_json(body: bytes, deepest: int) -> None:
    """Raise ApiError for a body that is no JSON, or nested too deeply to be parsed."""
    depth = 0
    for bracket in BRACKETS.finditer(STRING.sub(b"", body)):
        depth += 1 if bracket.group() in b"[{" else -1
        if depth > deepest:
            raise ApiError(400, f"the body is nested more than {deepest} deep", code="too_deep")
    try:
        json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is no JSON: {str(error)[:120]}", code="not_json") from None


def _hostname(host: str) -> str:
    """Return the name in a Host header, without its port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].lower()
