"""Every error of the API in one shape: RFC 9457 problem details, with `error` kept for Conveyor's clients."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import Match

from conveyor_runtime.bus import PayloadTooLarge
from conveyor_runtime.errors import InfrastructureError, InvalidInput, Problem, RequestError
from conveyor_runtime.models import NAME_RULE
from conveyor_runtime.models.base import NAME_PATTERN

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

#: Methods some route may answer. GET brings HEAD with it, and every path answers OPTIONS.
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


class ProblemItem(BaseModel):
    """One thing wrong: where (a JSON pointer into the body, or `/query/...`, `/path/...`) and why."""

    pointer: str
    detail: str


class ProblemBody(BaseModel):
    """What every answer above 399 holds. `error` repeats `detail`."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    error: str
    errors: list[ProblemItem] = []


def problem_response(
    status: int,
    detail: str,
    *,
    problems: Sequence[Problem] = (),
    headers: Mapping[str, str] | None = None,
    **extra: Any,
) -> JSONResponse:
    """The answer for an error; `extra` are further members."""
    body = ProblemBody(
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        error=detail,
        errors=[ProblemItem(pointer=problem.pointer, detail=problem.detail) for problem in problems],
    )
    content = {**body.model_dump(), **extra}
    return JSONResponse(content, status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Answer every expected exception of every route; the unexpected ones are the gate's."""
    app.add_exception_handler(RequestError, _on_request_error)
    app.add_exception_handler(InfrastructureError, _on_infrastructure_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)


async def _on_request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    problems = error.problems if isinstance(error, InvalidInput) else ()
    # What is left of a body that was too large will not be read.
    headers = {"Connection": "close"} if error.status == 413 else None
    return problem_response(error.status, str(error), problems=problems, headers=headers)


async def _on_infrastructure_error(request: Request, error: Exception) -> Response:
    if isinstance(error, PayloadTooLarge):
        return problem_response(413, f"it is too large to be stored: {error}")
    log.warning("a request could not be served", extra={"path": request.url.path, "reason": str(error)})
    return problem_response(503, f"{error}; try again in a moment", headers={"Retry-After": "1"})


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = [Problem("/" + "/".join(map(str, item["loc"])), _reason(item)) for item in error.errors()]
    return problem_response(400, f"the request is not valid: {problems[0]}", problems=problems)


def _reason(item: Mapping[str, Any]) -> str:
    is_name_rule = item.get("ctx", {}).get("pattern") == NAME_PATTERN
    return f"must be {NAME_RULE}" if is_name_rule else str(item["msg"])


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.scope["path"]
    if error.status_code == 404:
        return problem_response(404, f"there is no route {path}")
    if error.status_code != 405:
        return problem_response(error.status_code, error.detail, headers=error.headers)
    allow = ", ".join(_allowed(request))
    if request.method == "OPTIONS":
        return Response(status_code=204, headers={"Allow": allow})
    detail = f"{path} does not answer {request.method}; it answers {allow}"
    return problem_response(405, detail, headers={"Allow": allow})


def _allowed(request: Request) -> list[str]:
    """The methods of all routes of this path: the framework names only those of the first that fits."""
    allowed = []
    for method in _METHODS:
        scope = {**request.scope, "method": method}
        if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes):
            allowed += [method, "HEAD"] if method == "GET" else [method]
    return [*allowed, "OPTIONS"]
