"""One request: sent, retried where that is harmless, its errors told in words that help."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Any

import httpx2
import orjson

from conveyor_runtime.client.errors import ClientError, UnavailableError, UnreachableError, error_class
from conveyor_runtime.errors import ConfigError, Problem
from conveyor_runtime.kit.backoff import Backoff
from conveyor_runtime.security import redact_url

#: Header that carries the store's revision, from the answer to a write to the request for a list.
REVISION = "Conveyor-Revision"

#: Failures after which it is certain that the request never left.
_UNSENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)

#: Times a request is tried again.
RETRIES = 4


class Transport:
    """The connection pool, the token, and the highest revision this client has written."""

    def __init__(
        self, base_url: str, token: str, timeout: float, transport: httpx2.AsyncBaseTransport | None = None
    ) -> None:
        try:
            url = httpx2.URL(base_url)
        except httpx2.InvalidURL as error:
            raise ConfigError(f"the server's URL cannot be used: {error}") from None
        if url.scheme not in ("http", "https") or not url.host:
            raise ConfigError(f"the server's URL must look like http://host:port, not {redact_url(base_url)}")
        self.base_url = redact_url(str(url).rstrip("/"))
        self._revision = 0
        self._timeout = timeout
        self._http = httpx2.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=timeout,
            transport=transport,
            # Shorter than the server's, or a request now and then goes out on a connection that is being closed.
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=20, keepalive_expiry=2.0),
            # A proxy configured for the outside world does not know this machine's own addresses.
            trust_env=not _is_loopback(url.host),
        )

    async def aclose(self) -> None:
        """Close the pool."""
        await self._http.aclose()

    async def send(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        params: Mapping[str, Any] | None = None,
        current: bool = False,
        repeatable: bool = False,
        expect: tuple[int, ...] = (),
    ) -> httpx2.Response:
        """The answer, of status 2xx (or one of `expect`). Raises ClientError.

        What certainly never left is sent again, whatever it is; what may have arrived only if it reads, or is
        `repeatable`: a second time does what once does, and answers the same. `current` asks a list to have seen this
        client's writes.
        """
        headers = {REVISION: str(self._revision)} if current and self._revision else {}
        content = None
        if json is not None:
            content = orjson.dumps(json)
            headers["Content-Type"] = "application/json"
        backoff = Backoff(0.1, 2.0)
        repeatable = repeatable or method == "GET"
        for left in range(RETRIES, -1, -1):
            try:
                response = await self._http.request(
                    method, path, content=content, params=_given(params), headers=headers
                )
            except httpx2.TransportError as error:
                if left and (repeatable or isinstance(error, _UNSENT)):
                    await asyncio.sleep(backoff.next())
                    continue
                raise self.unreachable(error) from error
            if response.status_code == 503 and 503 not in expect and left and repeatable:
                await asyncio.sleep(backoff.next())
                continue
            if response.is_success or response.status_code in expect:
                self._revision = max(self._revision, int(response.headers.get(REVISION, 0)))
                return response
            raise self.refused(response)
        raise AssertionError("the last try returns or raises")

    @asynccontextmanager
    async def stream(self, path: str, *, after: int, silence: float) -> AsyncIterator[httpx2.EventSource]:
        """Server-sent events behind `after`; `silence` seconds without a sign of life break it off."""
        timeout = httpx2.Timeout(self._timeout, read=silence)
        headers = {"Last-Event-ID": str(after)}
        async with self._http.sse(path, headers=headers, timeout=timeout, max_event_size=8 << 20) as events:
            if not events.response.is_success:
                await events.response.aread()
                raise self.refused(events.response)
            yield events

    def unreachable(self, error: httpx2.TransportError) -> UnreachableError:
        """What to tell about a request without an answer."""
        reason = str(error) or type(error).__name__
        if isinstance(error, _UNSENT):
            return UnreachableError(f"nobody answers: is `conveyor up` running? tried {self.base_url} ({reason})")
        return UnreachableError(
            f"{self.base_url} took the request but did not answer ({reason}); whether it was carried out is unknown, "
            "look before you ask again"
        )

    def refused(self, response: httpx2.Response) -> ClientError:
        """The exception for an answer that is no success."""
        status = response.status_code
        try:
            body = response.json()
            detail = str(body.get("detail") or body["error"])
            problems = [Problem(str(it["pointer"]), str(it["detail"])) for it in body.get("errors", ())]
        except (ValueError, LookupError, TypeError, AttributeError):
            detail = f"{self.base_url} answered {status} and not as a Conveyor API does; is this its address?"
            problems = []
        kind = error_class(status)
        if status in (401, 403):
            detail = f"{detail} (tried {self.base_url})"
        elif kind is UnavailableError:
            detail = f"{self.base_url} cannot serve now: {detail}"
        return kind(detail, status=status, problems=problems)


def _given(params: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (params or {}).items() if value is not None and value != ""}


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
