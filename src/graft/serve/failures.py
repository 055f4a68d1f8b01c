"""Errors in OpenAI's form, so that its clients raise the exception that belongs to each.

{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}
"""

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from graft.errors import AdapterError, GraftError
from graft.serve.jobs import Busy, Cancelled, Late

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
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        """Return the error as JSON."""
        kind = TYPES.get(self.status, "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """Return the answer to a request that is refused."""
        headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status, headers)


def refusal(error: Exception) -> ApiError:
    """Return what a client is told of an error. What nobody foresaw is in the log, not in the answer."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Busy):
        return ApiError(429, str(error), code="queue_full", retry_after_s=error.retry_after_s)
    if isinstance(error, Late):
        return ApiError(408, str(error), code="timeout")
    if isinstance(error, Cancelled):
        return ApiError(503, str(error), code="stopping", retry_after_s=5)
    if isinstance(error, AdapterError):
        return ApiError(404, str(error), param="model", code="model_not_found")
    if isinstance(error, GraftError):
        return ApiError(400, str(error))
    log.error("a defect of graft", exc_info=error)
    return ApiError(500, "a defect of the server; its log says more", code="defect")


def add_handlers(app: FastAPI) -> None:
    """Let every error of an application leave in this form."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        return refusal(error).response()

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        param = place or None
        return ApiError(400, f"{place or 'the body'}: {first['msg']}", param=param).response()

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return ApiError(error.status_code, str(error.detail)).response()

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    for kind in (ApiError, Busy, Late, Cancelled, GraftError, Exception):
        app.add_exception_handler(kind, answer)
