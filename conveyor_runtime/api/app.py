"""The app put together."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.middleware import Middleware

from conveyor_runtime import __version__
from conveyor_runtime.api import (
    definitions,
    drivers,
    letters,
    logs,
    openapi,
    pipelines,
    problems,
    resources,
    runs,
    streams,
    system,
)
from conveyor_runtime.api.auth import BearerAuth
from conveyor_runtime.api.deps import Services
from conveyor_runtime.api.follow import RunEnds
from conveyor_runtime.api.gate import Gate
from conveyor_runtime.api.room import Room

_DESCRIPTION = "Resources in, runs out, nothing lost. Errors are problem details (RFC 9457)."

_ERRORS: dict[int | str, dict[str, object]] = {
    "4XX": {"model": problems.ProblemBody, "description": "The request cannot be served."},
    "5XX": {"model": problems.ProblemBody, "description": "The server cannot serve it now."},
}


def create_app(services: Services, *, token: str = "") -> FastAPI:
    """The API over `services`. With a `token`, every request but a probe's must carry it."""
    middleware = [Middleware(Gate)]
    if token:
        middleware.append(Middleware(BearerAuth, token=token))
    middleware.append(Middleware(Room, disk_is_full=services.disk_is_full))
    app = FastAPI(
        title="Conveyor Runtime",
        version=__version__,
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        # Paths are answered with and without a slash at their end; a redirect would lose a POST's body.
        redirect_slashes=False,
        middleware=middleware,
        responses=_ERRORS,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.services = services
    app.state.ends = RunEnds(services.state.view)
    problems.install(app)
    openapi.install(app)
    for module in (system, resources, definitions, pipelines, runs, drivers, letters, logs, streams):
        app.include_router(module.router)
    return app
