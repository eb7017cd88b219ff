"""The guest of one machine: its agent, and the scripts that are run in it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from conveyor_runtime.errors import BackendError, TerminalError
from conveyor_runtime.orchestra.qemu import scripts
from conveyor_runtime.orchestra.qemu.agent import Agent

__all__ = ["Guest", "ScriptFailed"]


class ScriptFailed(BackendError):
    """A script in the guest said no."""


class Guest:
    """Raises `BackendError` when the guest does not answer, and with the script's own words when one fails."""

    def __init__(self, directory: Path) -> None:
        self.agent = Agent(directory)

    async def run(self, script: str, *words: str, timeout: float = 60.0) -> str:
        """Run a script as root to its end; what it printed."""
        ran = await self.agent.run(["/bin/sh", "-c", script, "sh", *words], timeout=timeout)
        if ran.code != 0:
            said = ran.err.decode(errors="replace").strip() or f"code {ran.code}"
            raise ScriptFailed(f"the guest cannot do it: {said}")
        if ran.truncated:
            raise BackendError("the guest said more than its agent passes on")
        return ran.out.decode(errors="replace")

    async def settle(self) -> None:
        """What is needed once, before a machine may be frozen. Raises `TerminalError` if it can never run tasks."""
        ran = await self.agent.run(["/bin/sh", "-c", scripts.BOOT])
        if ran.code != 0:
            raise TerminalError(f"this guest cannot run tasks: {ran.err.decode(errors='replace').strip()}")

    async def set_clock(self) -> None:
        """A machine that was frozen thinks it is still then."""
        await self.agent.call("guest-set-time", {"time": time.time_ns()})

    async def inside(self, task_id: str, script: str, *words: str, timeout: float = 60.0) -> str:
        """Run a script as root where the task's mounts are."""
        enter = ["nsenter", f"--mount=/run/conveyor/ns/{task_id}", "/bin/sh", "-c", script, "sh", *words]
        return await self.run('exec "$@"', *enter, timeout=timeout)

    async def sweep(self, names: Sequence[str], signal: int) -> list[int]:
        """Signal (0 = none) all processes of these jobs or tasks; returns who they are."""
        lines = (await self.run(scripts.SWEEP, str(signal), *names)).splitlines()
        return [int(line.rpartition(" ")[2]) for line in lines]

    async def living(self, names: Sequence[str]) -> set[str]:
        """Those of these jobs or tasks of which something runs."""
        lines = (await self.run(scripts.SWEEP, "0", *names)).splitlines()
        return {line.rpartition(" ")[0] for line in lines}
