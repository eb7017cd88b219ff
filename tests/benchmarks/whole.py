"""A whole runtime, run as users run it, and what stands outside of it: a bare client, and who sees that runs end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from conveyor_runtime.bus import Bus, Tail
from conveyor_runtime.kit.child import end_with_parent
from tests.benchmarks.harness import IN_FLIGHT
from tests.support.processes import CONVEYOR

_ENDED = re.compile(rb'"status":"(Succeeded|Failed|Error|TimedOut|Cancelled)"')


class Http:
    """One keep-alive connection; a client library would be the bottleneck."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def connect(cls, url: str) -> Http:
        host, port = url.removeprefix("http://").split(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    async def request(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """Status and body of the answer."""
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
        self._writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", answer)
        return int(answer[9:12]), await self._reader.readexactly(int(length[1]) if length else 0)

    def close(self) -> None:
        self._writer.close()


class Ends:
    """Tells when runs have ended, by their stored records."""

    def __init__(self, bus: Bus) -> None:
        self._tail = Tail(bus, "KV_cv-state", "$KV.cv-state.run.>", last_per_subject=True)
        self._waiting: dict[str, asyncio.Future[bytes]] = {}
        self._task = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        async for message in self._tail:
            found = _ENDED.search(message.data)
            if found is not None:
                future = self.of(message.subject.rsplit(".", 1)[1])
                if not future.done():
                    future.set_result(found[1])

    def of(self, run_id: str) -> asyncio.Future[bytes]:
        """Done once the run has ended; the status."""
        return self._waiting.setdefault(run_id, asyncio.get_running_loop().create_future())

    async def close(self) -> None:
        self._task.cancel()
        await self._tail.aclose()


@contextlib.asynccontextmanager
async def runtime(sync: str, drivers: Mapping[str, str]) -> AsyncIterator[dict[str, Any]]:
    """`serve` and a process for each of `drivers`, which says where it is to be loaded from; the content of the ready
    file, and the pids."""
    with tempfile.TemporaryDirectory(prefix="cv-bench-") as folder:
        ready = Path(folder, "ready.json")
        common = ["--log-level", "warning"]
        serve = [*CONVEYOR, "serve", "--data", f"{folder}/data", "--api-port", "0", "--sync", sync]
        serve += ["--ready-file", str(ready), *common]
        processes = [await asyncio.create_subprocess_exec(*serve, preexec_fn=end_with_parent())]
        try:
            while not ready.exists():
                await asyncio.sleep(0.05)
            where = json.loads(ready.read_text())
            env = {**os.environ, "CONVEYOR_NATS_URL": where["nats"], "CONVEYOR_BACKEND": "native"}
            for target in drivers.values():
                run = [*CONVEYOR, "driver", "run", target, "--concurrency", str(IN_FLIGHT)]
                processes.append(
                    await asyncio.create_subprocess_exec(*run, *common, env=env, preexec_fn=end_with_parent())
                )
            named = zip(("serve", *drivers), processes, strict=True)
            pids = {name: process.pid for name, process in named}
            yield {**where, "pids": pids | {"nats": child_of(pids["serve"])}}
        finally:
            for process in reversed(processes):
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                await process.wait()


def child_of(pid: int) -> int:
    """The nats-server of `serve`."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
