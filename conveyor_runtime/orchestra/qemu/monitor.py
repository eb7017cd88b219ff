"""qemu's own control socket (QMP), and what is asked of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from qemu.qmp import ExecuteError, QMPClient, QMPError

from conveyor_runtime.errors import BackendError
from conveyor_runtime.orchestra.qemu.sockets import connect, locked

__all__ = ["Monitor", "monitor"]

SOCKET = "monitor.sock"

_ANSWER = 20.0  # seconds
_POLL = 0.005
_LATER_POLL = 0.05
_IGNORE_SHARED = {"capabilities": [{"capability": "x-ignore-shared", "state": True}]}


class Monitor:
    """An open connection. Raises `BackendError`."""

    def __init__(self, client: QMPClient) -> None:
        self._client = client

    async def ask(self, command: str, **arguments: Any) -> Any:
        """The answer to one command; `_` in the names of arguments stands for `-`."""
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        return await self._execute(command, named)

    async def save(self, file: Path, timeout: float = 120.0) -> None:
        """Write the state of its devices, with which it stops; its memory must be a shared file."""
        await self._execute("migrate-set-capabilities", _IGNORE_SHARED)
        await self.ask("migrate", uri=f"exec:cat > '{file}'")
        await self._until("query-migrate", {"completed"}, {"failed", "cancelled"}, timeout)

    async def restore(self, handle: int) -> None:
        """Have it take up the state that `save` wrote and go on, or end if it cannot. It was started with `-incoming
        defer`, and with that file open as `handle`."""
        await self._execute("migrate-set-capabilities", _IGNORE_SHARED)
        await self.ask("migrate-incoming", uri=f"fd:{handle}")

    async def _until(self, command: str, wanted: set[str], failed: set[str], timeout: float) -> None:
        deadline = asyncio.get_running_loop().time() + timeout
        looks = 0
        while True:
            found = await self.ask(command)
            status = found.get("status")
            if status in wanted:
                return
            if status in failed or asyncio.get_running_loop().time() > deadline:
                raise BackendError(f"{command} says {found.get('error-desc') or status}")
            await asyncio.sleep(_POLL if looks < 20 else _LATER_POLL)
            looks += 1

    async def _execute(self, command: str, arguments: dict[str, Any]) -> Any:
        try:
            async with asyncio.timeout(_ANSWER):
                return await self._client.execute(command, arguments)
        except ExecuteError as error:
            raise BackendError(f"qemu refused {command}: {error}") from error
        except (QMPError, OSError, EOFError) as error:
            raise BackendError(f"qemu is gone: {command} got no answer ({error!r})") from error
        except TimeoutError as error:
            raise BackendError(f"qemu did not answer {command} within {_ANSWER:g} s") from error


@contextlib.asynccontextmanager
async def monitor(directory: Path) -> AsyncIterator[Monitor]:
    """Connect to the machine whose socket is in `directory`; one caller at a time, those of other processes too."""
    async with locked(directory / "monitor.lock"):
        client = QMPClient()
        try:
            async with asyncio.timeout(_ANSWER):
                await client.connect(connect(directory, SOCKET))
        except (QMPError, OSError, EOFError) as error:
            raise BackendError(f"qemu's control socket does not answer: {error!r}") from error
        try:
            yield Monitor(client)
        finally:
            with contextlib.suppress(QMPError, OSError, EOFError):
                await client.disconnect()
