"""The bus of a Go Conveyor engine on a nats-server of ours: its streams and consumers as they were captured."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Self

import orjson

from conveyor_runtime.bus import Bus, wire

CAPTURED = orjson.loads((Path(__file__).parents[1] / "wire" / "data" / "streams.json").read_bytes())
STREAMS = ("messages", "pipeline-engine", "logs-engine")


def stream_config(name: str) -> dict[str, Any]:
    """What that engine asks for; the server adds its own metadata."""
    config = CAPTURED[name]["config"]
    return {key: value for key, value in config.items() if key != "metadata"}


class GoEngine:
    """Makes the streams, publishes events, takes results and log lines off its work queues."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.results: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.lines: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def start(cls, bus: Bus, streams: tuple[str, ...] = STREAMS) -> Self:
        engine = cls(bus)
        for name in streams:
            await bus.api(f"STREAM.CREATE.{name}", stream_config(name))
        for name, queue in (("pipeline-engine", engine.results), ("logs-engine", engine.lines)):
            if name in streams:
                [config] = CAPTURED[name]["consumers"]
                await bus.api(f"CONSUMER.CREATE.{name}.{name}", {"stream_name": name, "config": config})
                engine._tasks.append(asyncio.create_task(engine._consume(name, queue)))
        return engine

    async def _consume(self, name: str, queue: asyncio.Queue[dict[str, Any]]) -> None:
        inbox, messages = self.bus.new_inbox(), asyncio.Queue[Any]()
        unsubscribe = await self.bus.subscribe_core(inbox, messages.put_nowait)
        request = orjson.dumps({"batch": 100, "expires": 60 * 10**9})
        try:
            self.bus.send(wire.assemble(f"$JS.API.CONSUMER.MSG.NEXT.{name}.{name}", b"", request, inbox))
            while True:
                msg = await messages.get()
                if msg.reply:
                    queue.put_nowait(orjson.loads(msg.data))
                    await self.bus.request(msg.reply, b"+ACK")
        finally:
            await unsubscribe()

    async def event(self, driver: str, run_id: str, *, type_: str = "thing", event: str = "create") -> None:
        """One step, as that engine hands it out."""
        metadata = {"version": "1"}
        payload = {"id": "r", "name": run_id, "resource": type_, "metadata": metadata, "spec": {"x": 1}}
        message = {"event": event, "payload": orjson.dumps(payload).decode(), "id": f"id-{run_id}", "run_id": run_id}
        await self.bus.publish(f"drivers.{driver}.resources.{type_}", orjson.dumps(message))

    async def result(self, seconds: float = 10.0) -> dict[str, Any]:
        """The next result."""
        async with asyncio.timeout(seconds):
            return await self.results.get()

    async def waiting(self, stream: str = "messages") -> int:
        """How many messages are in a stream."""
        return int((await self.bus.api(f"STREAM.INFO.{stream}"))["state"]["messages"])

    async def emptied(self, stream: str = "messages") -> None:
        """Until everything in a stream was acknowledged."""
        async with asyncio.timeout(10):
            while await self.waiting(stream):
                await asyncio.sleep(0.02)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.bus.close()
