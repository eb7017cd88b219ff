"""The optional bearer token: asked of every request except those a probe must be able to make."""

from __future__ import annotations

from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from conveyor_runtime.api.problems import problem_response
from conveyor_runtime.security import same_token

#: Paths that tell nothing but whether the process is there.
OPEN = frozenset({"/", "/health", "/livez", "/readyz"})


class BearerAuth:
    """ASGI middleware. A browser cannot set headers on a WebSocket, so there `?token=` serves as well."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in OPEN or self._may_pass(scope):
            await self._app(scope, receive, send)
            return
        refusal = problem_response(
            401,
            "this server asks for a token: send `Authorization: Bearer TOKEN`",
            headers={"WWW-Authenticate": "Bearer"},
        )
        if scope["type"] == "http" or "websocket.http.response" in scope.get("extensions", {}):
            await refusal(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008, "reason": "a token is needed"})

    def _may_pass(self, scope: Scope) -> bool:
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and same_token(given.strip(), self._token):
            return True
        if scope["type"] != "websocket":
            return False
        query = parse_qs(scope.get("query_string", b"").decode(errors="replace"))
        return any(same_token(one, self._token) for one in query.get("token", ()))
