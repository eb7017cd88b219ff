"""What every request passes first: paths made plain, HEAD served by GET, requests counted, surprises caught."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from conveyor_runtime.api.problems import problem_response
from conveyor_runtime.telemetry import metrics

log = logging.getLogger(__name__)

#: Scope key that is true when a GET stands for a HEAD: a route that would answer without end must answer at once.
HEAD = "conveyor.head"

#: What is taken off the wire, unseen, of a body that no route wanted: bytes and seconds.
DRAIN_BYTES = 16 << 20
DRAIN_SECONDS = 5.0

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
        method, began = scope["method"], time.perf_counter()
        if method == "HEAD":
            scope["method"], scope[HEAD] = "GET", True
        exchange = _Exchange(scope, receive, send)
        try:
            if b"%2f" in scope.get("raw_path", b"").lower():
                refusal = problem_response(400, "no name holds a slash, so no path holds an escaped one")
                await refusal(scope, exchange.receive, exchange.send)
            else:
                await self._app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            log.debug("a client went away", extra={"path": scope["path"]})
        except Exception:
            request_id = secrets.token_hex(8)
            fields = {"request_id": request_id, "method": method, "path": scope["path"]}
            log.exception("a request failed unexpectedly", extra=fields)
            if exchange.status == 0:
                detail = f"something unexpected happened; the log of the server names it under {request_id}"
                failure = problem_response(500, detail, request_id=request_id)
                await failure(scope, exchange.receive, exchange.send)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            label = method if method in _METHODS else "other"
            metrics.HTTP_REQUESTS.labels(label, route, exchange.status or 499).inc()
            metrics.HTTP_SECONDS.labels(label, route).observe(time.perf_counter() - began)


class _Exchange:
    """One request and its answer. An answer that is ready before the whole request has been read goes out at once, but
    ends only when the rest has been taken off the wire: a connection closed on unread data is reset, and a client that
    still writes would never see the answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        self.status = 0
        self._unread = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        self._receive = receive
        self._send = send

    async def receive(self) -> Message:
        message = await self._receive()
        self._unread = message["type"] == "http.request" and message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        if self._unread and message["type"] == "http.response.body" and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._drain()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def _drain(self) -> None:
        taken = 0
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                while self._unread and taken < DRAIN_BYTES:
                    taken += len((await self.receive()).get("body", b""))
        except TimeoutError:
            pass
