"""The guest agent's protocol over its serial port: one JSON object per line, one caller at a time.

The port has one end on the host and cannot tell callers apart, so a lock beside it keeps them apart, those of other
processes too. Every call begins with the delimited synchronisation of qemu's
docs/interop/qemu-ga.rst: what an earlier caller left unread or half-sent is dropped by it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conveyor_runtime.errors import BackendError
from conveyor_runtime.orchestra.qemu.port import Port
from conveyor_runtime.orchestra.qemu.sockets import locked

__all__ = ["Agent", "AgentError", "Ran"]

PORT = "agent"

_ANSWER = 20.0  # seconds for a command that does not wait for anything
_LOOKS = (0.005, 0.01, 0.02)  # seconds between looks at a process, the last one repeated


class AgentError(BackendError):
    """The agent answered that it cannot."""


@dataclass(frozen=True)
class Ran:
    """How a short command in the guest ended. `code` is negative for one that a signal ended."""

    code: int
    out: bytes
    err: bytes
    truncated: bool
    """Whether output above 16 MiB was dropped by the agent."""


class Agent:
    """Talks to the agent of one machine. Raises `BackendError` when it does not answer in time, or is gone."""

    def __init__(self, directory: Path) -> None:
        """`directory` holds the port."""
        self._directory = directory

    async def answers(self, timeout: float) -> None:
        """Return as soon as the agent is there, which may be when the guest has booted."""
        await self.call("guest-ping", timeout=timeout)

    async def call(self, command: str, arguments: Mapping[str, Any] | None = None, timeout: float = _ANSWER) -> Any:
        """The answer to one command. `timeout` in seconds, all included."""
        try:
            async with asyncio.timeout(timeout), locked(self._directory / "agent.lock"):
                return await self._call(command, arguments or {})
        except TimeoutError as error:
            raise BackendError(f"the guest agent did not answer {command} within {timeout:g} s") from error
        except (OSError, EOFError, ValueError) as error:
            raise BackendError(f"the guest agent cannot be reached for {command}: {error!r}") from error

    async def run(
        self,
        argv: Sequence[str],
        *,
        env: Sequence[str] = (),
        stdin: bytes = b"",
        timeout: float = _ANSWER,
    ) -> Ran:
        """Run a short command to its end; the environment is the agent's own if none is given."""
        pid = await self.launch(argv, env=env, stdin=stdin, capture=True)
        deadline = asyncio.get_running_loop().time() + timeout
        looks = 0
        while True:
            await asyncio.sleep(_LOOKS[min(looks, len(_LOOKS) - 1)])
            looks += 1
            found = await self.call("guest-exec-status", {"pid": pid})
            if found["exited"]:
                return _ran(found)
            if asyncio.get_running_loop().time() > deadline:
                raise BackendError(f"{argv[0]} in the guest did not end within {timeout:g} s")

    async def launch(
        self, argv: Sequence[str], *, env: Sequence[str] = (), stdin: bytes = b"", capture: bool = False
    ) -> int:
        """Start a command and return its process id in the guest."""
        request: dict[str, Any] = {"path": argv[0], "arg": list(argv[1:]), "capture-output": capture}
        if env:
            request["env"] = list(env)
        if stdin:
            request["input-data"] = base64.b64encode(stdin).decode()
        return int((await self.call("guest-exec", request))["pid"])

    async def _call(self, command: str, arguments: Mapping[str, Any]) -> Any:
        port = Port(self._directory, PORT)
        try:
            mark = secrets.randbits(31)
            # Both at once: to be woken costs the guest more than to answer.
            await port.write(b"\xff" + _request("guest-sync-delimited", {"id": mark}) + _request(command, arguments))
            expected = b'\xff{"return": %d}\n' % mark
            while not (await port.read_line()).endswith(expected):
                pass
            answer = json.loads(await port.read_line())
        finally:
            port.close()
        if "error" in answer:
            raise AgentError(f"{command}: {answer['error'].get('desc', answer['error'])}")
        return answer["return"]


def _request(command: str, arguments: Mapping[str, Any]) -> bytes:
    return json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n"


def _ran(found: Mapping[str, Any]) -> Ran:
    code = -int(found["signal"]) if "signal" in found else int(found.get("exitcode", 0))
    out, err = (base64.b64decode(found.get(name, "")) for name in ("out-data", "err-data"))
    return Ran(code, out, err, bool(found.get("out-truncated") or found.get("err-truncated")))
