"""What comes bit by bit: the streams of execs and of containers' stdin, logs, waits, statistics."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import docker.errors
import requests

from conveyor_runtime.errors import BackendError
from conveyor_runtime.orchestra.docker.client import translate
from conveyor_runtime.orchestra.docker.reading import ByteReader
from conveyor_runtime.orchestra.status import Stream
from conveyor_runtime.orchestra.task import Stdin

__all__ = ["Connection", "Demux", "Streaming"]

_HEADER = struct.Struct(">BxxxL")
_STREAMS: dict[int, Stream] = {1: "stdout", 2: "stderr"}
_CHUNK = 64 * 1024


class Demux:
    """Takes frames apart: 8 bytes of header (which stream, how long), then that many bytes."""

    def __init__(self) -> None:
        self._header = b""
        self._stream: Stream = "stdout"
        self._left = 0

    def feed(self, data: bytes) -> Iterator[tuple[Stream, bytes]]:
        """The pieces of output in `data`. A frame need not be complete to be passed on. Raises `BackendError` if
        these are no frames."""
        view = memoryview(data)
        while view:
            if self._left:
                piece, view = view[: self._left], view[self._left :]
                self._left -= len(piece)
                yield self._stream, bytes(piece)
                continue
            missing = _HEADER.size - len(self._header)
            self._header += bytes(view[:missing])
            view = view[missing:]
            if len(self._header) == _HEADER.size:
                number, self._left = _HEADER.unpack(self._header)
                self._header = b""
                if number not in _STREAMS:
                    raise BackendError(f"docker sent output of an unknown stream {number}")
                self._stream = _STREAMS[number]


class Streaming:
    """A request whose answer comes bit by bit, for as long as what it reports on goes on."""

    def __init__(self, api: Any, method: str, url: str, parameters: dict[str, Any]) -> None:
        self._api = api
        self._request = (method, url, parameters)
        self._response: Any = None
        self._pieces: Iterator[bytes] = iter(())
        self._stopped = False

    def read(self) -> bytes | None:
        """Some bytes; None at the end. Blocking. Asks at the first call."""
        if self._response is None:
            method, url, parameters = self._request
            send = self._api._get if method == "GET" else self._api._post
            self._response = send(url, params=parameters, stream=True, timeout=None)
            self._api._raise_for_status(self._response)
            self._pieces = self._response.iter_content(_CHUNK)
        try:
            return None if self._stopped else next(self._pieces, None)
        except (OSError, ValueError, AttributeError, requests.RequestException):
            if not self._stopped:
                raise
            return None

    def stop(self) -> None:
        """Make a blocked `read` return."""
        self._stopped = True
        if self._response is not None:
            with contextlib.suppress(OSError, AttributeError, ValueError):
                self._response.raw._fp.fp.raw._sock.shutdown(socket.SHUT_RDWR)

    def reader(self) -> ByteReader:
        """Read it in a thread, which closes the connection at its end."""

        def read() -> bytes | None:
            try:
                data = self.read()
            except (docker.errors.DockerException, requests.RequestException, OSError) as error:
                raise translate(error) from error
            if data is None and self._response is not None:
                self._response.close()
            return data

        return ByteReader(read, self.stop)


class Connection:
    """The connection to the streams of one started exec, or of one container that is to be started."""

    def __init__(self, response: Any) -> None:
        """`response` is the HTTP response by which the engine agreed to switch to the stream."""
        self._response = response
        # The buffered reader, not the socket below it: what arrived together with the head of the response is there
        # already and would be lost.
        self._file = response.raw._fp.fp
        self._socket: socket.socket = self._file.raw._sock
        self._socket.settimeout(None)

    @classmethod
    def start(cls, api: Any, exec_id: str) -> Connection:
        """Start a created exec and attach to its streams. Blocking."""
        response = api._post_json(
            api._url("/exec/{0}/start", exec_id),
            headers={"Connection": "Upgrade", "Upgrade": "tcp"},
            data={"Tty": False, "Detach": False},
            stream=True,
        )
        api._raise_for_status(response)
        return cls(response)

    @classmethod
    def attach(cls, api: Any, container: str) -> Connection:
        """Attach to the stdin of a container that has been created. Blocking."""
        response = api._post(
            api._url("/containers/{0}/attach", container),
            headers={"Connection": "Upgrade", "Upgrade": "tcp"},
            params={"stdin": 1, "stream": 1},
            stream=True,
        )
        api._raise_for_status(response)
        return cls(response)

    def read(self) -> bytes | None:
        """Some bytes; None at the end. Blocking."""
        try:
            data: bytes = self._file.read1(_CHUNK)
        except TimeoutError:  # only where one was set
            raise
        except (OSError, ValueError):  # closed by stop(), or the engine died: the exec's own state tells which
            data = b""
        return data or None

    def _write(self, data: bytes | memoryview) -> bool:
        """False when nobody will read it any more."""
        try:
            self._socket.sendall(data)
        except OSError:
            return False
        return True

    def end_input(self) -> None:
        """Say to the command that this was all."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def stop(self) -> None:
        """Make a blocked `read` return."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Release the connection, when nobody reads any more."""
        self._response.close()

    def reader(self) -> ByteReader:
        """Read it in a thread, which closes the connection at its end."""

        def read() -> bytes | None:
            data = self.read()
            if data is None:
                self.close()
            return data

        return ByteReader(read, self.stop)

    async def feed(self, stdin: Stdin) -> None:
        """Hand all of it to the command (`hand`), and then the end."""
        await self.hand(stdin)
        self.end_input()

    async def hand(self, stdin: Stdin) -> None:
        """Hand all of it to the command, as fast as it reads, or as much as it wants. A command that does not read
        holds up a thread of this call's own, until `stop`."""
        thread = ThreadPoolExecutor(1, thread_name_prefix="docker-stdin")
        loop = asyncio.get_running_loop()
        pieces = _pieces(stdin) if isinstance(stdin, bytes) else stdin
        try:
            async for piece in pieces:
                if not await loop.run_in_executor(thread, self._write, piece):
                    return
        finally:
            thread.shutdown(wait=False)

    def collect(self, seconds: float) -> dict[Stream, bytes]:
        """Everything, for a short command. Blocking. Raises `TimeoutError` if it has not ended after so long."""
        found: dict[Stream, bytes] = {"stdout": b"", "stderr": b""}
        demux = Demux()
        over_at = time.monotonic() + seconds
        try:
            while True:
                self._socket.settimeout(max(over_at - time.monotonic(), 0.001))
                if (data := self.read()) is None:
                    break
                for stream, piece in demux.feed(data):
                    found[stream] += piece
        finally:
            self.close()
        return found


async def _pieces(data: bytes) -> AsyncIterator[memoryview]:
    view = memoryview(data)
    for start in range(0, len(view), _CHUNK):
        yield view[start : start + _CHUNK]
