"""What a task uses, as its cgroup in the guest counts it."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from conveyor_runtime.errors import BackendError
from conveyor_runtime.orchestra.qemu import scripts
from conveyor_runtime.orchestra.qemu.guest import Guest
from conveyor_runtime.orchestra.status import Stat

__all__ = ["Meter"]


class Meter:
    """Takes samples of one task. The network is the machine's, which tasks of a namespace share."""

    def __init__(self, guest: Guest, task_id: str) -> None:
        self._guest = guest
        self._task_id = task_id
        self._before: tuple[float, int] | None = None

    async def sample(self) -> Stat | None:
        """The usage now; None the first time, which only begins to count. Raises `BackendError`."""
        said = (await self._guest.run(scripts.USAGE, self._task_id)).split()
        try:
            cpu, memory, droppable, limit, pids, read, written, received, sent = map(int, said)
        except ValueError as error:
            raise BackendError(f"the guest tells its usage as {said}") from error
        now, before = time.monotonic(), self._before
        self._before = now, cpu
        if before is None:
            return None
        return Stat(
            at=datetime.now(UTC),
            cpu_milli=(cpu - before[1]) / (now - before[0]) / 1000,
            memory_bytes=max(0, memory - droppable),
            memory_limit_bytes=limit,
            pids=pids,
            network_in_bytes=received,
            network_out_bytes=sent,
            disk_read_bytes=read,
            disk_written_bytes=written,
        )
