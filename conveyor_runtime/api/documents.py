"""Bodies: read up to a limit, decoded strictly, refused with the place and the reason."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar

import orjson
from fastapi import Depends, Request
from pydantic import BaseModel

from conveyor_runtime.engine.validation import parse
from conveyor_runtime.errors import InvalidInput, Problem, TooLarge

M = TypeVar("M", bound=BaseModel)

MAX_BODY = 1 << 20

#: Deeper nesting is refused: encoders further down have limits of their own, and no honest document needs it.
MAX_DEPTH = 64

_JSON = re.compile(r"application/(?:[\w.+-]+\+)?json", re.IGNORECASE)


async def read_document(request: Request) -> dict[str, Any]:
    """The body as a JSON object. Raises InvalidInput, TooLarge."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip()
    if not _JSON.fullmatch(media_type):
        raise InvalidInput(f"the Content-Type must be application/json, not {media_type or 'missing'}")
    return decode(await _read(request))


async def read_optional_document(request: Request) -> dict[str, Any]:
    """As `read_document`; an empty body counts as an empty object."""
    if request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers:
        return {}
    return await read_document(request)


#: A route's body.
Document = Annotated[dict[str, Any], Depends(read_document)]
OptionalDocument = Annotated[dict[str, Any], Depends(read_optional_document)]


def parse_draft(model: type[M], document: dict[str, Any], what: str, shown: type[BaseModel]) -> M:
    """The document as `model`, every member known. Those of an answer, `shown`, may be sent back and count for nothing.

    Raises InvalidInput.
    """
    only_shown = set(shown.model_fields) - set(model.model_fields)
    own = {key: value for key, value in document.items() if key not in only_shown}
    return parse(model, own, what, extra="forbid")


async def _read(request: Request) -> bytes:
    too_large = TooLarge(f"the body is larger than {MAX_BODY} bytes")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > MAX_BODY:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise too_large
    return bytes(body)


def decode(body: bytes) -> dict[str, Any]:
    """The object that `body` holds. Raises InvalidInput for anything else, NUL characters and deep nesting included."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"the body is no JSON: {error}") from None
    if not isinstance(document, dict):
        raise InvalidInput("the body must be a JSON object", [Problem("", "must be an object")])
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH or b"\\u0000" in body:
        for pointer, detail in _oddities(document):
            raise InvalidInput(f"the body cannot be taken: {pointer or '/'}: {detail}", [Problem(pointer, detail)])
    return document


def _oddities(document: Any) -> Iterator[tuple[str, str]]:
    """What JSON allows and no machine further down could carry: NUL characters, bottomless nesting."""
    stack: list[tuple[str, Any, int]] = [("", document, 1)]
    while stack:
        pointer, value, depth = stack.pop()
        if depth > MAX_DEPTH:
            yield pointer, f"is nested deeper than {MAX_DEPTH} levels"
            return
        if isinstance(value, str) and "\0" in value:
            yield pointer, "holds a NUL character"
        elif isinstance(value, dict):
            for key, child in value.items():
                if "\0" in key:
                    yield pointer, "has a key with a NUL character"
                stack.append((f"{pointer}/{key.replace('~', '~0').replace('/', '~1')}", child, depth + 1))
        elif isinstance(value, list):
            stack.extend((f"{pointer}/{index}", child, depth + 1) for index, child in enumerate(value))
