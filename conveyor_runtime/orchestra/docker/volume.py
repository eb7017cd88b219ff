"""A docker volume, and copies of its content through a container that is never started."""

from __future__ import annotations

import asyncio
import contextlib
import io
import posixpath
import secrets
import tarfile
import tempfile
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from typing import IO, Any

from conveyor_runtime.errors import Gone, ImageNotFound, TerminalError
from conveyor_runtime.kit.shielded import finish
from conveyor_runtime.orchestra.archive import check_members, check_path, spooled_archive
from conveyor_runtime.orchestra.docker import spec
from conveyor_runtime.orchestra.docker.client import Engine
from conveyor_runtime.orchestra.docker.removal import remove_container
from conveyor_runtime.orchestra.docker.transfer import Passing, copying, put

__all__ = ["DockerVolume"]

_EMPTY = ("conveyor-runtime/empty", "latest")  # an image with nothing in it, made here: copying needs a container
_INSIDE = "/volume"
_CHUNK = 1 << 20


class DockerVolume:
    """See `conveyor_runtime.orchestra.base.Volume` and `capabilities.VolumeCopy`."""

    def __init__(self, engine: Engine, ns: str, name: str, found: dict[str, str]) -> None:
        """`found` are the volume's labels."""
        self._engine = engine
        self._ns = ns
        self._name = name
        self._labels = found

    @property
    def name(self) -> str:
        return self._name

    async def cleanup(self) -> None:
        """See the contract."""
        with contextlib.suppress(Gone):
            await self._engine.call(self._engine.api.remove_volume, spec.volume_name(self._ns, self._name))

    async def copy_in(self, archive: AsyncIterable[bytes]) -> None:
        """See the contract."""
        async with spooled_archive(archive) as file:
            await asyncio.to_thread(_check, file)
            async with self._mounted() as container:
                await put(self._engine, container, _INSIDE, iter(lambda: file.read(_CHUNK), b""))

    async def copy_out(self, *paths: str) -> AsyncIterator[bytes]:
        """See the contract."""
        relative = [check_path(path) for path in paths or (".",)]
        with tempfile.TemporaryFile() as file:
            async with self._mounted() as container:
                await copying(self._engine, lambda passing: self._pack(container, file, relative, passing))
            while data := await asyncio.to_thread(file.read, _CHUNK):
                yield data

    @asynccontextmanager
    async def _mounted(self) -> AsyncIterator[str]:
        """A container that has it at `_INSIDE`."""
        mount = {"Type": "volume", "Source": spec.volume_name(self._ns, self._name), "Target": _INSIDE}
        config = {
            "name": f"{self._ns}.{self._name}.copy-{secrets.token_hex(4)}",
            "host_config": self._engine.api.create_host_config(mounts=[mount], network_mode="none"),
            "command": ["none"],
            "labels": {**self._labels, spec.KIND: "copy"},
        }
        await self._engine.call(self._engine.api.inspect_volume, mount["Source"])
        image = ":".join(_EMPTY)
        try:
            created = await self._engine.call(self._engine.api.create_container, image, **config)
        except (Gone, ImageNotFound):
            await self._engine.call(_import_empty, self._engine.api)
            created = await self._engine.call(self._engine.api.create_container, image, **config)
        try:
            yield str(created["Id"])
        finally:
            await finish(remove_container(self._engine, created["Id"]))

    def _pack(self, container: str, file: IO[bytes], paths: list[str], passing: Passing) -> None:
        """Blocking. The engine names what it packs after its last part only."""
        with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as whole:
            for path in paths:
                pieces, _ = self._engine.api.get_archive(container, posixpath.join(_INSIDE, path))
                with contextlib.closing(pieces), tempfile.TemporaryFile() as part:
                    for piece in passing(pieces):
                        part.write(piece)
                    part.seek(0)
                    with tarfile.open(fileobj=part) as one:
                        for member in one:
                            self._add(whole, one, member, path)
        file.seek(0)

    @staticmethod
    def _add(whole: tarfile.TarFile, one: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
        above = posixpath.dirname(path)
        strip = f"{posixpath.basename(_INSIDE)}/" if path == "." else ""
        member.name = posixpath.join(above, member.name.removeprefix(strip)) or "."
        if member.islnk():
            member.linkname = posixpath.join(above, member.linkname.removeprefix(strip))
        if member.isfile():
            whole.addfile(member, one.extractfile(member))
        elif member.isdir() or member.issym() or member.islnk():
            whole.addfile(member)


def _check(file: IO[bytes]) -> None:
    try:
        with tarfile.open(fileobj=file) as archive:
            check_members(archive)
    except tarfile.TarError as error:
        raise TerminalError(f"this is no tar archive: {error}") from error
    file.seek(0)


def _import_empty(api: Any) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        folder = tarfile.TarInfo(_INSIDE.strip("/"))
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    api.import_image_from_data(buffer.getvalue(), *_EMPTY)
