"""How a method of the client asks, and what it makes of the answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import quote

import httpx2
from pydantic import ValidationError

from conveyor_runtime.client.errors import NotFoundError, ServerFaultError, not_understood
from conveyor_runtime.client.models import Deleted
from conveyor_runtime.client.transport import Transport
from conveyor_runtime.models import Model

__all__ = ["delete", "list_all", "one", "path_of"]

M = TypeVar("M", bound=Model)

_PAGE = 500


async def delete(transport: Transport, path: str, name: str, *, force: bool) -> Deleted:
    """Delete what may take a while to go."""
    response = await transport.send("DELETE", path, params={"force": "true"} if force else {})
    return Deleted(name=name, gone=True) if response.status_code == 204 else one(Deleted, response)


async def list_all(
    transport: Transport, model: type[M], path: str, params: Mapping[str, Any], most: int | None = None
) -> list[M]:
    """A list, page by page, and of it `most` items."""
    items: list[M] = []
    cursor, left = "", most
    while left is None or left > 0:
        page = {**params, "cursor": cursor, "limit": str(min(left or _PAGE, _PAGE))}
        body = (await transport.send("GET", path, params=page, current=True)).json()
        items += [_parsed(model, item) for item in body["items"]]
        cursor = body["next_cursor"]
        if not cursor:
            break
        left = None if left is None else left - len(body["items"])
    return items


def path_of(*parts: str) -> str:
    """The path of these parts, whatever characters they hold. Raises NotFoundError if one is empty."""
    if "" in parts:
        # The path of a list, or of something else: never what was meant.
        raise NotFoundError("a name is missing", status=404)
    return "/" + "/".join(quote(part, safe="") for part in parts)


def one(model: type[M], response: httpx2.Response, **extra: Any) -> M:
    """The answer as a `model`, `extra` fields added. Raises ServerFaultError if it is none."""
    try:
        body = response.json()
    except ValueError:
        raise ServerFaultError("the answer is no JSON: this is no Conveyor API", status=response.status_code) from None
    return _parsed(model, {**body, **extra} if extra else body)


def _parsed(model: type[M], value: Any) -> M:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise not_understood(error) from None
