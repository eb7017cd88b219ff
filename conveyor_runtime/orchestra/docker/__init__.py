"""The docker backend: sandboxes as containers of the Docker engine the `docker` command would talk to.

Every object it makes carries labels that say whose it is; nothing without them is ever touched.
"""

from conveyor_runtime.orchestra.docker.backend import DockerBackend

__all__ = ["DockerBackend"]
