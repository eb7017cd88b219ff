"""Where the engine is: what the docker command would go by."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import docker
import docker.errors
import docker.tls

__all__ = ["address", "connection"]

_docker: Any = docker  # it has no types to check against


def connection() -> dict[str, Any]:
    """Arguments of the client: for `DOCKER_HOST` (with `DOCKER_TLS_VERIFY` and `DOCKER_CERT_PATH`), or else for the
    context that `DOCKER_CONTEXT` names, or else for the one chosen by `docker context use`, or else for its default
    socket.

    Raises `DockerException` for a context that is not there or cannot be read.
    """
    name = _context()
    if name == "default":
        return dict(_docker.utils.kwargs_from_env())
    # Not by the library's own reader: without a config.json it looks for contexts in the working directory.
    contexts, identity = _directory() / "contexts", hashlib.sha256(name.encode()).hexdigest()
    described = contexts / "meta" / identity / "meta.json"
    if not described.exists():
        raise docker.errors.DockerException("there is no such context")
    try:
        endpoint = json.loads(described.read_bytes())["Endpoints"]["docker"]
        host, verify = str(endpoint["Host"]), not endpoint.get("SkipTLSVerify")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise docker.errors.DockerException(f"{described} cannot be read") from error
    ca, cert, key = (contexts / "tls" / identity / "docker" / f"{part}.pem" for part in ("ca", "cert", "key"))
    if not ca.exists():
        return {"base_url": host}
    pair = (str(cert), str(key)) if cert.exists() else None
    return {"base_url": host, "tls": docker.tls.TLSConfig(client_cert=pair, ca_cert=str(ca), verify=verify)}


def address() -> str:
    """The same for people."""
    host, name = os.environ.get("DOCKER_HOST"), _context()
    return host or ("its default socket" if name == "default" else f"its context {name!r}")


def _context() -> str:
    if os.environ.get("DOCKER_HOST"):
        return "default"
    if name := os.environ.get("DOCKER_CONTEXT"):
        return name
    try:
        return str(json.loads((_directory() / "config.json").read_bytes()).get("currentContext") or "default")
    except (OSError, ValueError, AttributeError):  # none, or none that says anything
        return "default"


def _directory() -> Path:
    return Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
