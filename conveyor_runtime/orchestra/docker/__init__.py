"""The docker backend: sandboxes as containers of the Docker engine the `docker` command would talk to.

Every object it makes carries labels that say whose it is; nothing without them is ever touched.
"""

from conveyor_runtime.orchestra.base import Backend
from conveyor_runtime.orchestra.docker.backend import DockerBackend
from conveyor_runtime.orchestra.registry import BackendSettings

__all__ = ["DockerBackend", "open_backend"]


async def open_backend(settings: BackendSettings) -> Backend:
    """For the registry."""
    return await DockerBackend.open(settings)
