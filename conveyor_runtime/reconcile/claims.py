"""The claim of an attempt: created before user code, answered for when no result will come."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from conveyor_runtime.bus import Delivery
from conveyor_runtime.errors import InfrastructureError, RevisionConflict
from conveyor_runtime.models import Claim, utc_now
from conveyor_runtime.reconcile.invoke import Stop
from conveyor_runtime.reconcile.lease import Lease
from conveyor_runtime.reconcile.work import Work
from conveyor_runtime.store import Put, State, keys

log = logging.getLogger(__name__)

#: A dispatch older than this, in seconds, is checked against its run before it is claimed: its claims may be purged.
_OLD = 1800.0

#: Seconds until a dispatch that another worker seems to hold is looked at again.
BUSY_RETRY = 5.0

#: Seconds between two looks at a claim of which nobody knows whether it is stored.
_LOOK_AGAIN = 1.0


class Claims:
    """Claims attempts for one process."""

    def __init__(self, state: State, lease: Lease) -> None:
        self._state = state
        self._lease = lease
        self._doubtful: dict[tuple[str, str, int, int], Work] = {}
        self._doubt = asyncio.Event()

    async def take(self, work: Work, node: str, delivery: Delivery) -> bool:
        """Whether this attempt is ours now. If not, the delivery has been answered."""
        if not self._lease.held():
            await delivery.nak(BUSY_RETRY)
            return False
        if delivery.age > _OLD and not await self._still_open(work):
            await delivery.ack()
            return False
        self._doubtful.pop(work.numbers, None)  # what an earlier try has left is met below
        claim = Claim(instance=self._lease.id, node=node, at=utc_now())
        try:
            await self._state.commit(Put(keys.claim(*work.numbers), claim, 0))
        except RevisionConflict:
            await self._taken_already(work, delivery)
            return False
        except InfrastructureError:
            # Perhaps it is stored, and then nobody else may begin what nobody works on.
            self._doubtful[work.numbers] = work
            self._doubt.set()
            raise
        if not self._lease.held():
            await self.give_up(work, Stop.LEASE)
            await delivery.nak(BUSY_RETRY)
            return False
        return True

    async def give_up(self, work: Work, why: Stop | None) -> None:
        """Say in the claim that no result will come from here, so that the engine goes on without waiting."""
        await self._give_up(work, why, lambda: True)

    async def settle(self) -> None:
        """For ever: give up claims whose storing was not answered. Their dispatch may come to others only, and they
        leave it to this living process; if it comes here, it is taken or given up there."""
        while True:
            await self._doubt.wait()
            self._doubt.clear()
            for numbers, work in list(self._doubtful.items()):
                try:
                    await self._give_up(work, None, partial(self._doubtful.__contains__, numbers))
                except InfrastructureError as error:
                    log.debug("could not look at the claim of run %s: %s", work.run_id, error)
                    asyncio.get_running_loop().call_later(_LOOK_AGAIN, self._doubt.set)
                else:
                    self._doubtful.pop(numbers, None)

    async def _give_up(self, work: Work, why: Stop | None, still: Callable[[], bool]) -> None:
        for _ in range(5):
            found = await self._state.claim(*work.numbers)
            if found is None or found.record.instance != self._lease.id or not still():
                return
            update = {"timed_out": True} if why is Stop.TIMEOUT else {"given_up": True}
            claim = found.record.model_copy(update={**update, "why": why.value if why else "it failed half-way"})
            try:
                await self._state.commit(Put(keys.claim(*work.numbers), claim, found.revision))
            except RevisionConflict:
                continue
            return

    async def _taken_already(self, work: Work, delivery: Delivery) -> None:
        if not await self._still_open(work):
            await delivery.ack()
            return
        found = await self._state.claim(*work.numbers)
        if found is not None and found.record.instance == self._lease.id and not found.record.given_up:
            # Ours, and nothing of this process works on it: a handler that failed between claim and result.
            await self.give_up(work, None)
        await delivery.nak(BUSY_RETRY)

    async def _still_open(self, work: Work) -> bool:
        found = await self._state.run(work.run_id)
        if found is None or found.record.status.terminal:
            return False
        state = found.record.steps.get(work.step)
        return state is not None and state.open and (state.attempt, state.takeover) == (work.attempt, work.takeover)
