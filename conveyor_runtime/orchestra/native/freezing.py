"""A native container that can be halted."""

from __future__ import annotations

import asyncio
import contextlib
import time

from conveyor_runtime.errors import BackendError
from conveyor_runtime.kit.shielded import finish
from conveyor_runtime.orchestra.native import cgroups
from conveyor_runtime.orchestra.native.container import NativeContainer
from conveyor_runtime.orchestra.native.proc import sweep

__all__ = ["FreezableContainer"]

_PATIENCE = 5.0  # seconds for one that has ended to be started again
_POLL = 0.05


class FreezableContainer(NativeContainer):
    """See `capabilities.Freezable`. For machines where control groups can be made, and only there: SIGSTOP reaches one
    process after the other, shows its parent a stop that nobody meant, and any process may take it back."""

    async def freeze(self) -> None:
        """See the contract. One that has ended stays as it is; `BackendError` if it is not soon started again."""
        if not (await self._look()).done:
            await finish(asyncio.to_thread(self._freeze))

    async def unfreeze(self) -> None:
        """See the contract."""
        await asyncio.to_thread(cgroups.thaw, self._home)

    def _freeze(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        try:
            group = cgroups.add_freezer(self._home, self._meta.nonce)
            while True:
                # What is started by one inside is inside. What is started by one outside meanwhile is met again.
                while outside := set(sweep(self._targets(), 0)) - cgroups.members([group]):
                    for pid in outside:
                        with contextlib.suppress(ProcessLookupError):
                            cgroups.enter([group], pid)
                cgroups.freeze(self._home)
                if cgroups.members([group]) or self._read().done:
                    return
                if time.monotonic() > deadline:
                    raise BackendError(f"the container {self.id} waits to be started again")
                time.sleep(_POLL)  # it has ended a moment ago, or will be started again soon
        except OSError as error:
            raise BackendError(f"the container {self.id} cannot be frozen: {error}") from error
