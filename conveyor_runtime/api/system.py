"""The routes about the server itself: who it is, whether it lives, whether it can serve, what it counts."""

from __future__ import annotations

import time

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel

from conveyor_runtime.api.deps import ServicesDep
from conveyor_runtime.api.problems import ProblemBody, problem_response
from conveyor_runtime.telemetry import metrics

router = APIRouter(tags=["server"])


class Health(BaseModel):
    """Conveyor's health answer."""

    status: str
    time: int


class Readiness(BaseModel):
    """Whether this process can serve, and the state of each part it needs."""

    status: str
    parts: dict[str, str]


@router.get("/", response_class=PlainTextResponse)
async def root() -> str:
    """Who answers here."""
    return "Conveyor Runtime. The routes are described at /openapi.json"


@router.get("/health")
async def health() -> Health:
    """That the process lives, in Conveyor's words."""
    return Health(status="healthy", time=int(time.time()))


@router.get("/livez")
async def livez() -> dict[str, str]:
    """That the process lives: a probe that fails calls for a restart."""
    return {"status": "ok"}


@router.get("/readyz", responses={503: {"model": ProblemBody}})
async def readyz(services: ServicesDep) -> Readiness:
    """That it can serve now: 503, naming the parts, while it starts, drains or has no bus."""
    ready, parts = services.ready()
    if ready:
        return Readiness(status="ready", parts=parts)
    failing = ", ".join(f"{part}: {state}" for part, state in parts.items() if state != "ok")
    return problem_response(503, f"not ready: {failing}", headers={"Retry-After": "1"}, parts=parts)  # type: ignore[return-value]


@router.get("/metrics", response_class=PlainTextResponse)
async def prometheus() -> Response:
    """All metrics, in the Prometheus text format."""
    return Response(metrics.render(), media_type=metrics.CONTENT_TYPE)
