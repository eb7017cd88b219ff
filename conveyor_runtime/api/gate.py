"""What every request passes first: paths made plain, HEAD served by GET, requests counted, surprises caught."""

from __future__ import annotations

import logging
import secrets
import time

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from conveyor_runtime.api.problems import problem_response
from conveyor_runtime.telemetry import metrics

log = logging.getLogger(__name__)

#: Scope key that is true when a GET stands for a HEAD: a route that would answer without end must answer at once.
HEAD = "conveyor.head"

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Gate:
    """ASGI middleware, the outermost."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        # A copy: the server looks at its own to know whether a body may follow.
        scope = dict(scope)
        path = scope["path"]
        if len(path) > 1 and path.endswith("/"):
            scope["path"] = path[:-1]
        if scope["type"] == "websocket":
            await self._app(scope, receive, send)
        else:
            await self._serve(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, status, began = scope["method"], 0, time.perf_counter()
        if method == "HEAD":
            scope["method"], scope[HEAD] = "GET", True

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if b"%2f" in scope.get("raw_path", b"").lower():
                await problem_response(400, "no name holds a slash, so no path holds an escaped one")(
                    scope, receive, watched
                )
            else:
                await self._app(scope, receive, watched)
        except ClientDisconnect:
            log.debug("a client went away", extra={"path": scope["path"]})
        except Exception:
            request_id = secrets.token_hex(8)
            fields = {"request_id": request_id, "method": method, "path": scope["path"]}
            log.exception("a request failed unexpectedly", extra=fields)
            if status == 0:
                detail = f"something unexpected happened; the log of the server names it under {request_id}"
                await problem_response(500, detail, request_id=request_id)(scope, receive, watched)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            label = method if method in _METHODS else "other"
            metrics.HTTP_REQUESTS.labels(label, route, status or 499).inc()
            metrics.HTTP_SECONDS.labels(label, route).observe(time.perf_counter() - began)
