"""Drivers: what is registered, which of its processes live, and Conveyor's broadcast."""

from __future__ import annotations

from fastapi import APIRouter, Response

from conveyor_runtime.api.deps import Current, ObjectName, Page, Services, ServicesDep, revision_header
from conveyor_runtime.api.documents import Document
from conveyor_runtime.api.openapi import takes
from conveyor_runtime.api.shapes import DriverView, InstanceView
from conveyor_runtime.engine.validation import parse
from conveyor_runtime.errors import BusUnavailable, Conflict, NotFound, RevisionConflict
from conveyor_runtime.models import DriverMessage, DriverRecord
from conveyor_runtime.store import Put, keys

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


@router.delete("/drivers/{name}", status_code=204, response_class=Response)
async def forget(name: ObjectName, services: ServicesDep) -> Response:
    """Forget a driver that is gone for good, so that no run is planned for it any more. 409 while it lives."""
    found = await services.state.driver(name)
    if found is None:
        raise NotFound(f"there is no driver named {name}")
    await services.state.view.wait_for(found.revision)
    living = _view(services, found.record).instances
    if living:
        where = ", ".join(f"pid {it.pid} on {it.host}" for it in living[:3])
        raise Conflict(f"driver {name} has {len(living)} living process(es) ({where}); stop them first")
    if found.record.foreign and name in services.engine.foreign.present:
        raise Conflict(f"driver {name} is built on another SDK and has its consumer on the bus; remove that first")
    try:
        [revision] = await services.state.commit(Put(keys.driver(name), None, found.revision))
    except RevisionConflict:
        raise Conflict(f"driver {name} has registered again just now") from None
    return Response(status_code=204, headers=revision_header(revision))


@router.post("/drivers/broadcast-message", **takes(DriverMessage))
async def broadcast(document: Document, services: ServicesDep) -> dict[str, str]:
    """Send a message to whoever listens on the bus now; it is not stored."""
    message = parse(DriverMessage, document, "the message")
    if not services.bus.connected:
        raise BusUnavailable("not connected to the bus")
    services.bus.publish_core(_BROADCAST, message.model_dump_json().encode())
    return {"message": "message published"}
