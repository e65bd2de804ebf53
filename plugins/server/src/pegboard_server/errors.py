"""Errors as OpenAI's clients read them. No body carries the text of an exception, but for mistakes of the request's own."""

from __future__ import annotations

import json
import logging
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from pegboard.errors import PegboardError
from pegboard.interfaces.engine import RequestOutput

log = logging.getLogger("pegboard.server")

KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    499: "client_closed_request",
}


class ApiError(Exception):
    """An answer that is no success. param: the field that is at fault. code: for programs, such as "context_length_exceeded"."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The error in OpenAI's shape."""
        kind = KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """Return the answer. Its text is ASCII: a message may quote a lone surrogate."""
        content = json.dumps(self.body).encode()
        return Response(content, self.status, self.headers, media_type="application/json")


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Return the error of a request that must be changed."""
    return ApiError(400, message, param=param, code=code)


def of_user(error: PegboardError, param: str | None = None) -> ApiError:
    """Return a mistake that the framework found as a mistake of the request's."""
    return bad_request(f"{error.message} ({error.fix})" if error.fix else error.message, param)


def internal(error: BaseException | str) -> ApiError:
    """Return an error that says nothing but a number, under which the log has the rest."""
    number = secrets.token_hex(8)
    log.error("error %s: %s", number, error, exc_info=error if isinstance(error, BaseException) else None)
    return ApiError(500, f"the server failed; its log has the reason under {number}", code="internal_error")


def unavailable(message: str, retry_after: int = 1) -> ApiError:
    """Return the error of a server that cannot take requests now. retry_after: seconds."""
    return ApiError(503, message, code="service_unavailable", headers={"retry-after": str(retry_after)})


def of_output(output: RequestOutput) -> ApiError:
    """Return the error that an answer of the engine ended with."""
    if output.finish_reason == "timeout":
        if output.num_output_tokens == 0:
            return unavailable("the request waited too long for its turn", retry_after=5)
        return ApiError(504, "the request took longer than it may", code="deadline_exceeded")
    if output.finish_reason == "abort":
        return unavailable(output.error or "the request was ended before its answer was complete")
    if output.lost:
        return unavailable("what ran the model went away and is started again: send the request again")
    if output.rejected:
        return bad_request(output.error or "the request cannot be answered", code="invalid_request")
    return internal(output.error or "the engine gave no reason")


_FIELD = re.compile(r"[a-z0-9_]+")


def of_validation(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """Return the first of pydantic's errors."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return bad_request("the body is not JSON")
    where = [str(part) for part in first["loc"] if part != "body"]
    if not where:
        return bad_request("the body must be a JSON object, sent with the content type application/json")
    # A union's members stand in the path too, by what they are.
    fields = [part for part in where if _FIELD.fullmatch(part) and part not in ("str", "int", "float", "bool")]
    param = ".".join(fields) or where[0]
    return bad_request(f"{param}: {first['msg']}", param=param)


def install(app: FastAPI) -> None:
    """Let `app` answer in this shape. What is not foreseen here is caught by the guard."""

    @app.exception_handler(ApiError)
    async def api(request: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(PegboardError)
    async def mistake(request: Request, error: PegboardError) -> Response:
        return of_user(error).response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return of_validation(error.errors()).response()

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        messages = {
            400: "the body cannot be read",
            404: f"there is no {request.url.path}",
            405: f"{request.url.path} does not take {request.method}",
        }
        message = messages.get(error.status_code, "the request cannot be answered")
        return ApiError(error.status_code, message, headers=error.headers).response()
