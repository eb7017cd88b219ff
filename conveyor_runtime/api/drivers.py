"""Drivers: what is registered, which of its processes live, and Conveyor's broadcast."""

from __future__ import annotations

from fastapi import APIRouter

from conveyor_runtime.api.deps import Current, Page, Services, ServicesDep
from conveyor_runtime.api.documents import Document
from conveyor_runtime.api.openapi import takes
from conveyor_runtime.api.shapes import DriverView, InstanceView
from conveyor_runtime.engine.validation import parse
from conveyor_runtime.errors import BusUnavailable
from conveyor_runtime.models import DriverMessage, DriverRecord

router = APIRouter(tags=["drivers"])

#: Core subject of broadcasts; in no stream, so whoever is away misses them.
_BROADCAST = "application"


@router.get("/drivers", dependencies=[Current])
async def list_all(services: ServicesDep) -> Page[DriverView]:
    """All drivers by name, with their processes that live now."""
    drivers = services.state.view.drivers()
    return Page(items=[_view(services, drivers[name]) for name in sorted(drivers)])


def _view(services: Services, record: DriverRecord) -> DriverView:
    living = [
        InstanceView(**found.record.model_dump())
        for found in services.state.view.instances()
        if found.record.driver == record.name and not services.engine.liveness.is_dead(found.record.id)
    ]
    return DriverView(**record.model_dump(), instances=sorted(living, key=lambda it: it.started_at))


@router.post("/drivers/broadcast-message", **takes(DriverMessage))
async def broadcast(document: Document, services: ServicesDep) -> dict[str, str]:
    """Send a message to whoever listens on the bus now; it is not stored."""
    message = parse(DriverMessage, document, "the message")
    if not services.bus.connected:
        raise BusUnavailable("not connected to the bus")
    services.bus.publish_core(_BROADCAST, message.model_dump_json().encode())
    return {"message": "message published"}
