"""The janitor's judgement: whose containers on this node may be removed. Only a positive answer of the store counts."""

from __future__ import annotations

import asyncio
import logging
import random
from datetime import datetime, timedelta
from functools import partial

from conveyor_runtime.errors import InfrastructureError
from conveyor_runtime.models import ENGINE, run_made_at, utc_now
from conveyor_runtime.orchestra import Backend, NamespaceInfo, Orchestra, Owner, reap
from conveyor_runtime.store import State

log = logging.getLogger(__name__)

PERIOD = 60.0

#: How long a run's own `finally` steps have, once it is terminal, before the janitor cleans up after it.
GRACE = timedelta(seconds=30)

#: Namespaces younger than this are left alone: their run may not be visible yet.
_YOUNG = timedelta(seconds=60)


class Janitor:
    """Reaps what outlived its run, on every backend of this process."""

    def __init__(self, state: State, orchestra: Orchestra, installation: str) -> None:
        self._state = state
        self._orchestra = orchestra
        self._installation = installation
        self._left_alone: set[str] = set()
        self._spared_until: datetime | None = None

    async def run(self) -> None:
        """A round at start, then one a minute, not in step with the other processes of the node, and one as soon as a
        grace is over that was met: what ended just before its worker was killed is not to wait for both."""
        while True:
            over = await self.round()
            pause = PERIOD * random.uniform(0.8, 1.2)  # noqa: S311 - spreads load, no secret
            if over is not None:
                pause = min(pause, max(0.0, (over - utc_now()).total_seconds()) + random.uniform(1.0, 5.0))  # noqa: S311
            await asyncio.sleep(pause)

    async def round(self) -> datetime | None:
        """One look at every backend; what cannot be judged now is judged in the next round. Tells when the first of the
        graces is over for which something was spared."""
        self._spared_until = None
        await asyncio.gather(*map(self._look_at, self._orchestra.backends))
        return self._spared_until

    async def _look_at(self, backend: Backend) -> None:
        try:
            await reap(backend, self._installation, partial(self._is_dead, backend))
        except InfrastructureError as error:
            log.warning("the janitor could not look at %s: %s", backend.name, error)

    async def _is_dead(self, backend: Backend, info: NamespaceInfo) -> bool:
        """Whether the owner ended long enough ago, was never recorded, or works on another node now.

        Raises InfrastructureError when the store cannot tell.
        """
        now = utc_now()
        services = [owner.resource for owner in info.owners if owner.resource]
        if services:
            # It outlives the run that made it, but not its resource; one of the same name made later is another.
            here = [await self._belongs_here(service, backend) for service in services]
            gone = now - info.created_at > _YOUNG and not any(here)
            return gone and not await self._may_be_anothers(info)
        found = await self._state.run(info.run_id)
        if found is None:
            return now - info.created_at > _YOUNG and not await self._may_be_anothers(info)
        run = found.record
        if run.status.terminal:
            return run.finished_at is not None and self._is_over(run.finished_at + GRACE, now)
        owners = [owner for owner in info.owners if owner.run_id == info.run_id]
        return bool(owners) and all([await self._moved_away(owner, backend) for owner in owners])

    def _is_over(self, grace: datetime, now: datetime) -> bool:
        if now <= grace:
            self._spared_until = min(self._spared_until or grace, grace)
        return now > grace

    async def _may_be_anothers(self, info: NamespaceInfo) -> bool:
        """Whether the original of this store, or a copy of it, may have made this: a backup that was restored beside
        the original runs under the same installation, even on this very machine, so that one's runs are unknown to the
        other is no answer. What a copy makes bears an epoch that the original never had; what the original made after
        the backup is newer than that."""
        meta = await self._state.ensure_meta()
        runs = {info.run_id, *(owner.run_id for owner in info.owners)} - {""}
        made = [it for it in map(run_made_at, runs) if it is not None]
        why = ""
        if any(owner.epoch not in ("", meta.epoch, *meta.former) for owner in info.owners):
            why = "a copy of this store made it"
        elif meta.backup_at is not None and any(it > meta.backup_at for it in made):
            why = "it is newer than the backup this store was restored from"
        if why and info.ns not in self._left_alone:
            self._left_alone.add(info.ns)
            log.warning("%s is left alone: %s", info.ns, why)
        return bool(why)

    async def _belongs_here(self, service: str, backend: Backend) -> bool:
        """Whether its resource is there, and does not say that the service is on another node."""
        type_, _, rest = service.partition("/")
        name, _, identity = rest.rpartition("/")
        found = await self._state.resource(type_, name)
        return found is not None and found.record.id == identity and found.record.node in (None, backend.node)

    async def _moved_away(self, owner: Owner, backend: Backend) -> bool:
        """Whether the step that made this was taken over, and the worker that has it now is on another node."""
        found = await self._state.run(owner.run_id)
        state = found.record.steps.get(owner.step) if found else None
        if state is None or (state.attempt, state.takeover) <= (owner.attempt, owner.takeover):
            return False
        claim = await self._state.claim(owner.run_id, owner.step, state.attempt, state.takeover)
        node = claim.record.node if claim is not None and claim.record.instance != ENGINE else None
        return node is not None and node != backend.node
