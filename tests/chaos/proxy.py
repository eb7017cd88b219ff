"""A TCP proxy between one process and its NATS servers, that can do to a connection what networks do."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal

#: From the process to the server, or back.
Way = Literal["up", "down"]


class Proxy:
    """Listens on `port` and hands each connection to one of the `targets`, ports of this machine.

    `swallow` drops the bytes of a way, `hold` keeps them back and delivers them late; both until `heal`. After bytes
    were swallowed the connection is cut, as nothing on it makes sense any more.
    """

    def __init__(self, port: int, targets: Sequence[int]) -> None:
        self.port = port
        self.delay = 0.0
        self.refuse = False
        self._targets = list(targets)
        self._swallow: set[Way] = set()
        self._flow: dict[Way, asyncio.Event] = {"up": asyncio.Event(), "down": asyncio.Event()}
        for flow in self._flow.values():
            flow.set()
        self._open: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def close(self) -> None:
        """Cut everything and listen no more."""
        assert self._server is not None
        self._server.close()
        self.heal()
        self.cut()
        await self._server.wait_closed()

    def cut(self) -> None:
        """End every connection at once."""
        for writer in list(self._open):
            writer.transport.abort()

    def swallow(self, *ways: Way) -> None:
        """From now on, lose what is sent these ways."""
        self._swallow.update(ways)

    def hold(self, *ways: Way) -> None:
        """From now on, deliver nothing these ways, and all of it at `heal`."""
        for way in ways:
            self._flow[way].clear()

    def heal(self) -> None:
        """Everything passes again."""
        self.delay, self.refuse = 0.0, False
        if self._swallow:
            self._swallow.clear()
            self.cut()
        for flow in self._flow.values():
            flow.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        server_writer = None
        try:
            found = None if self.refuse else await self._connect()
            if found is None:
                return
            server_reader, server_writer = found
            self._open.add(server_writer)
            ways = (self._pump(reader, server_writer, "up"), self._pump(server_reader, writer, "down"))
            pumps = {asyncio.ensure_future(way) for way in ways}
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            # What one side sent before it closed still arrives at the other.
            await asyncio.wait(pumps, timeout=0 if all(flow.is_set() for flow in self._flow.values()) else 60)
            for pump in pumps:
                pump.cancel()
            await asyncio.wait(pumps)
        finally:
            for end in (writer, server_writer):
                if end is not None:
                    self._open.discard(end)
                    end.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        for port in random.sample(self._targets, len(self._targets)):
            with suppress(OSError):
                return await asyncio.open_connection("127.0.0.1", port)
        return None

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if way in self._swallow:
                    continue
                if self.delay:
                    await asyncio.sleep(self.delay)
                await self._flow[way].wait()
                writer.write(data)
                await writer.drain()
