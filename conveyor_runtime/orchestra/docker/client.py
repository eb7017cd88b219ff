"""The way to the Docker engine: one client, two bounded pools of threads, its errors in our words.

Calls leave through one pool, what takes as long as there are files through the other: a few copies in the first would
hold up every call, and the one that kills among those. A stream (the output of an exec, the progress of a pull) is read
by a thread of its own, because it lives as long as what it reports on.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

import docker
import docker.errors
import requests

from conveyor_runtime.errors import (
    BackendError,
    BackendUnavailable,
    ConveyorError,
    Gone,
    ImageNotFound,
    TerminalError,
)
from conveyor_runtime.kit.shielded import finish
from conveyor_runtime.orchestra.docker.finding import address, connection

__all__ = ["Conflicting", "Engine", "node_name", "translate"]

T = TypeVar("T")

_docker: Any = docker  # it has no types to check against

# What Podman answers 500 to.
_PODMAN_CONFLICTS = ("is already in use", "container state improper")

_WORKERS = 16
_TRANSFERS = 8
_FIRST_ANSWER = 10.0  # seconds for a daemon to say that it is there
_ANSWER = 120.0  # seconds of silence after which a call counts as lost


class Conflicting(BackendError):
    """The engine says the object is in another state than the call needs (HTTP 409)."""


def translate(error: Exception) -> ConveyorError:
    """One of the Docker client's exceptions as one of ours."""
    if isinstance(error, docker.errors.ImageNotFound):
        return ImageNotFound(_text(error))
    if isinstance(error, docker.errors.NotFound):
        return Gone(_text(error))
    if isinstance(error, docker.errors.APIError):
        if error.status_code == 400:
            return TerminalError(f"docker refuses: {_text(error)}")
        if error.status_code == 409 or any(words in _text(error) for words in _PODMAN_CONFLICTS):
            return Conflicting(_text(error))
        return BackendError(f"docker: {_text(error)}")
    return BackendUnavailable(_no_answer(error))


def _no_answer(error: Exception) -> str:
    """Why there is none, without the wrapping of the libraries in between, which is no sentence."""
    inner: BaseException = error
    seen = {id(inner)}
    while True:
        around = (*inner.args, getattr(inner, "reason", None), inner.__cause__, inner.__context__)
        found = next((it for it in around if isinstance(it, BaseException) and id(it) not in seen), None)
        if found is None:
            break
        inner = found
        seen.add(id(inner))
    why = inner.strerror if isinstance(inner, OSError) and inner.strerror else str(inner)
    return f"docker does not answer at {address()}: {why}"


class Engine:
    """A Docker engine. `api` is the low-level client: use it only inside a function given to `call` or `transfer`."""

    def __init__(self, api: Any, node: str, info: dict[str, Any]) -> None:
        """`info` is what the engine says of itself."""
        self.api = api
        self.node = node
        self.root = Path(info.get("DockerRootDir") or "/var/lib/docker")
        """Where its files lie."""
        self.limits_disk = _limits_disk(info)
        """Whether its storage driver can keep a container from writing more than it may."""
        self.log_config = _log_config(info)
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="docker")
        self._transfers = ThreadPoolExecutor(_TRANSFERS, thread_name_prefix="docker-transfer")

    @classmethod
    async def open(cls) -> Self:
        """Connect to where the docker command would (`finding`), with the newest version of the API both sides know.
        Raises `BackendUnavailable` if nothing answers."""
        try:
            api, info = await asyncio.to_thread(_connect)
        except (docker.errors.DockerException, requests.RequestException, OSError, ValueError) as error:
            raise BackendUnavailable(_no_answer(error)) from error
        return cls(api, node_name(info), info)

    async def call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Run one blocking call in the pool. Raises our exceptions only.

        A caller that is cancelled stops waiting; the call itself cannot be stopped and comes to its end.
        """
        with _in_our_words():
            return await asyncio.get_running_loop().run_in_executor(self._pool, partial(function, *args, **kwargs))

    async def transfer(self, function: Callable[..., T], *args: Any, give_up: Callable[[], None] | None = None) -> T:
        """The same for a call that takes as long as there are files to be gone through.

        When the caller is cancelled, one that has not begun never does, and one that has is told by `give_up` and
        waited for: nothing of it happens later.
        """
        future = self._transfers.submit(function, *args)
        ending = asyncio.wrap_future(future)
        with _in_our_words():
            try:
                return await asyncio.shield(ending)
            except asyncio.CancelledError:
                if not future.cancel():
                    if give_up is not None:
                        give_up()
                    await finish(_ended(ending))
                raise

    async def close(self) -> None:
        """Let running calls end and close the connections."""
        for pool in (self._transfers, self._pool):
            await asyncio.to_thread(pool.shutdown)
        self.api.close()


@contextmanager
def _in_our_words() -> Iterator[None]:
    try:
        yield
    except (docker.errors.DockerException, requests.RequestException, OSError) as error:
        raise translate(error) from error


async def _ended(work: asyncio.Future[Any]) -> None:
    await asyncio.wait([work])
    work.exception()  # nobody is left to be told


def node_name(info: dict[str, Any]) -> str:
    """`docker-<daemon>-<where>`, by what the engine says of itself.

    Its id alone is not enough: machines made from one image share it, and so do two engines on one machine.
    """
    identity = str(info.get("ID") or "")
    daemon = re.sub("[^A-Za-z0-9]", "", identity)[:12]
    where = "\n".join((identity, str(info.get("Name")), str(info.get("DockerRootDir"))))
    return f"docker-{daemon or 'x'}-{hashlib.sha256(where.encode()).hexdigest()[:8]}"


def _log_config(info: dict[str, Any]) -> dict[str, Any]:
    """How output is kept: every byte as it was and all of them, where Docker's usual way replaces what is not UTF-8.
    Podman has not `local`; its own file keeps bytes, too."""
    if "local" in ((info.get("Plugins") or {}).get("Log") or ("local",)):
        return {"Type": "local", "Config": {"max-size": "1000g", "max-file": "1", "compress": "false"}}
    return {"Type": "k8s-file", "Config": {}}


def _limits_disk(info: dict[str, Any]) -> bool:
    driver, backing = str(info.get("Driver")), dict(info.get("DriverStatus") or ())
    return driver in ("btrfs", "zfs") or (driver == "overlay2" and backing.get("Backing Filesystem") == "xfs")


def _connect() -> tuple[Any, dict[str, Any]]:
    api = _docker.APIClient(
        version="auto",
        timeout=_FIRST_ANSWER,
        max_pool_size=_WORKERS + _TRANSFERS,
        **connection(),
    )
    try:
        info = api.info()
    except BaseException:
        api.close()
        raise
    api.timeout = _ANSWER
    return api, info


def _text(error: docker.errors.APIError) -> str:
    return str(error.explanation or error)
