"""Refuses new work while the disk of the store is full, before any of it is written."""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from conveyor_runtime.api.problems import problem_response

_ADDING = frozenset({"POST", "PUT", "PATCH"})


class Room:
    """ASGI middleware. What ends something (a delete, a cancel) is let through: it makes room."""

    def __init__(self, app: ASGIApp, disk_is_full: Callable[[], bool]) -> None:
        self._app = app
        self._disk_is_full = disk_is_full

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        adds = scope["type"] == "http" and scope["method"] in _ADDING and not scope["path"].endswith("/cancel")
        if adds and self._disk_is_full():
            detail = "the disk of the store is full: nothing was stored; make room and try again"
            await problem_response(507, detail, headers={"Retry-After": "10"})(scope, receive, send)
        else:
            await self._app(scope, receive, send)
