"""Errors in OpenAI's form, so that its clients raise the exception that belongs to each.

{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}
"""

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from graft.errors import AdapterError, GraftError, close_to
from graft.serve.jobs import Busy, Cancelled, Late
from graft.serve.registry import NoRoom

log = logging.getLogger("graft.serve")
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    499: "cancelled_error",
    503: "overloaded_error",
}


class ApiError(Exception):
    """A refusal.  param: the field that it is about.  retry_after_s: for 429 and 503."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        message = message.encode("utf-8", "replace").decode()  # half characters cannot be sent
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message[:2000], param, code
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        """Return the error as JSON."""
        kind = TYPES.get(self.status, "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """Return the answer to a request that is refused."""
        headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        if self.status == 408:
            headers["x-should-retry"] = "false"  # OpenAI's clients would ask for the same work again
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status, headers)


def too_large(what: str, most: int) -> ApiError:
    """Return the refusal of a body or of headers of more than so many bytes."""
    status = 431 if what == "headers" else 413
    return ApiError(status, f"{what} of more than {most:,} bytes", code=f"{what}_too_large")


def refusal(error: Exception) -> ApiError:
    """Return what a client is told of an error. What nobody foresaw is in the log, not in the answer."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Busy):
        return ApiError(429, str(error), code="queue_full", retry_after_s=error.retry_after_s)
    if isinstance(error, NoRoom):
        message = f"the adapter {error} has no room beside those that answer now"
        return ApiError(503, message, code="no_room", retry_after_s=2)
    if isinstance(error, Late):
        return ApiError(408, str(error), code="timeout")
    if isinstance(error, Cancelled):
        return ApiError(503, str(error), code="stopping", retry_after_s=5)
    if isinstance(error, AdapterError):
        return ApiError(404, str(error), param="model", code="model_not_found")
    if isinstance(error, GraftError):
        return ApiError(400, str(error))
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # the latter is torch's
        return ApiError(503, "the machine has no memory left for this", code="out_of_memory", retry_after_s=5)
    log.error("a defect of graft", exc_info=error)
    return ApiError(500, "a defect of the server; its log says more", code="defect")


def invalid_field(request: Request, errors: Sequence[Any]) -> ApiError:
    """Return the refusal of the first wrong field: where it is, what is wrong, and the nearest known name.

    Of a field with several forms, what is wrong with the form that fits best is told.
    """
    deepest = max(len(error["loc"]) for error in errors)
    first = next(error for error in errors if len(error["loc"]) == deepest)
    names = _fields(request)
    place, unknown = "", first["type"] == "extra_forbidden"
    for part in first["loc"][1:]:
        if isinstance(part, int):
            place += f"[{part}]"
        elif part in names or first["loc"][0] != "body" or (unknown and part is first["loc"][-1]):
            place += f".{part[:80]}" if place else part[:80]
    if unknown:
        close = close_to(str(first["loc"][-1])[:80], sorted(names), likeness=0.6)
        hint = f"; did you mean {close[0]}?" if close else ""
        return ApiError(400, f"{place}: an unknown field{hint}", param=place, code="unknown_parameter")
    return ApiError(400, f"{place or 'the body'}: {first['msg']}", param=place or None, code="invalid_value")


def _fields(request: Request) -> set[str]:
    """Return the names of all fields that the body of a request may have, at any depth."""
    field = getattr(request.scope.get("route"), "body_field", None)
    model = getattr(getattr(field, "field_info", None), "annotation", None)
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return set()
    schema = model.model_json_schema()
    parts = [schema, *schema.get("$defs", {}).values()]
    return {name for part in parts for name in part.get("properties", {})}


def add_handlers(app: FastAPI) -> None:
    """Let every error of an application leave in this form."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        return refusal(error).response()

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return invalid_field(request, error.errors()).response()

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        answer = ApiError(error.status_code, str(error.detail)).response()
        answer.headers.update(error.headers or {})  # which methods are allowed
        return answer

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    for kind in (ApiError, Busy, NoRoom, Late, Cancelled, GraftError, Exception):
        app.add_exception_handler(kind, answer)
