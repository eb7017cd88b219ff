"""The lease of this process: proof, renewed every 5 s, that its work is its own."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import asdict

import uuid_utils

from conveyor_runtime.errors import InfrastructureError, RevisionConflict
from conveyor_runtime.kit.identity import ProcessIdentity
from conveyor_runtime.models import LEASE_SILENCE, Instance, Use, utc_now
from conveyor_runtime.orchestra import Orchestra
from conveyor_runtime.orchestra.disk import disk_of
from conveyor_runtime.store import Put, State, keys

log = logging.getLogger(__name__)

RENEW_EVERY = 5.0

#: Seconds after the sending of the last confirmed renewal at which this process must stop its work. Others take it
#: for dead only after 45 s of silence, so that with the kill grace no two ever work on the same.
SELF_FENCE = 25.0

#: Seconds without the bus after which people are told where it is looked for.
_LONG = 30.0

#: Where this process looks for the bus, without credentials: for people only.
BUS_ADDRESS: ContextVar[str] = ContextVar("BUS_ADDRESS", default="its address")


class LeaseLostError(Exception):
    """Somebody declared this process gone: its work is another's now, for good."""


def capacity(orchestra: Orchestra | None) -> Use:
    """What this machine has; of several disks the largest."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    disks = [disk_of(backend) for backend in orchestra.backends] if orchestra is not None else []
    disk = max((disk.total for disk in disks if disk is not None), default=0)
    return Use(cpu_milli=(os.cpu_count() or 1) * 1000, memory_bytes=memory, disk_bytes=disk)


class Lease:
    """`instance.<id>`, a new id for every process."""

    def __init__(
        self,
        state: State,
        driver: str,
        nodes: tuple[str, ...],
        slots: int,
        clock: Callable[[], float] = time.monotonic,
        has: Use = Use(),  # noqa: B008 - frozen
    ) -> None:
        self.id = str(uuid_utils.uuid7())
        self._state = state
        self._clock = clock
        self._confirmed = float("-inf")
        self._revision = 0
        self._ended = False
        self._lost = False
        now = utc_now()
        self._record = Instance(
            id=self.id,
            driver=driver,
            nodes=nodes,
            slots=slots,
            has=has,
            started_at=now,
            renewed_at=now,
            **asdict(ProcessIdentity.own()),
        )

    @property
    def has(self) -> Use:
        """What the machine of this process has."""
        return self._record.has

    def held(self) -> bool:
        """Whether this process may still act: the last renewal known to be stored was sent recently enough."""
        return not self._ended and self._clock() - self._confirmed <= SELF_FENCE

    def abandoned(self) -> bool:
        """Whether another may by now go on with what this process began, or will before all of that has ended: others
        wait for `LEASE_SILENCE` seconds, and what has to be ended takes a kill grace."""
        return self._lost or self._clock() - self._confirmed > (SELF_FENCE + LEASE_SILENCE) / 2

    async def renew(self) -> None:
        """Write the lease. Raises LeaseLostError if somebody else wrote it, InfrastructureError if it is unknown
        whether it was written."""
        record = self._record.model_copy(update={"renewed_at": utc_now()})
        sent = self._clock()
        try:
            [self._revision] = await self._state.commit(
                Put(keys.instance(self.id), record, self._revision), timeout=4.0
            )
        except RevisionConflict:
            found = await self._state.instance(self.id)
            if found is None or found.record.gone or found.record.ended:
                self._ended = self._lost = True
                raise LeaseLostError(found.record.gone if found else "its lease was removed") from None
            # A renewal whose answer never came, followed by ours: the stored one is our own.
            self._revision = found.revision
            return
        self._record, self._confirmed = record, sent

    async def run(self, renewed: Callable[[], None], lapsed: Callable[[], None]) -> None:
        """Renew for ever; `renewed` is called after each try, confirmed or not. Raises LeaseLostError.

        `lapsed` is called when the lease has lapsed, before it is renewed: a process that stood still may have lost
        its work to another meanwhile, and must not take the renewal for proof that it has not.
        """
        failing_since: float | None = None
        told = False
        while True:
            started = self._clock()
            if not self.held():
                lapsed()
            try:
                await self.renew()
                failing_since, told = None, False
            except InfrastructureError as error:
                failing_since = started if failing_since is None else failing_since
                log.log(logging.DEBUG if told else logging.WARNING, "the lease could not be renewed: %s", error)
                if not told and self._clock() - failing_since >= _LONG:
                    told = True
                    log.warning(
                        "the bus at %s has not answered for %.0f s; if `up` was restarted elsewhere, look at its ready"
                        " file and start this process with the address in it",
                        BUS_ADDRESS.get(),
                        self._clock() - failing_since,
                    )
            if not self.held():
                lapsed()  # it may have stood still just now, waiting for the answer
            renewed()
            await asyncio.sleep(max(RENEW_EVERY - (self._clock() - started), 0.5))

    async def end(self) -> None:
        """Say that this process stops, so that nobody waits for it."""
        if self._ended:
            return
        self._ended = True
        record = self._record.model_copy(update={"renewed_at": utc_now(), "ended": True})
        try:
            await self._state.commit(Put(keys.instance(self.id), record, None), timeout=3.0)
        except InfrastructureError as error:
            log.warning("the end of the lease could not be written: %s", error)
