"""Where the bus is, and how to log in: pure."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from conveyor_runtime.errors import ConfigError

__all__ = ["parse_url"]


def parse_url(url: str) -> tuple[list[str], dict[str, str]]:
    """Servers without credentials (safe to print), and the credentials as options of the client.

    Credentials go to every server, also to those of a cluster that the first one tells us about.
    """
    servers: list[str] = []
    options: dict[str, str] = {}
    for one in url.split(","):
        try:
            parts = urlsplit(one.strip() if "://" in one else f"nats://{one.strip()}")
            port = parts.port or 4222
        except ValueError as exc:
            raise ConfigError(f"the bus URL has no usable port: {exc}") from exc
        if parts.scheme not in ("nats", "tls") or not parts.hostname:
            raise ConfigError("the bus URL must look like nats://[user:password@]host[:port] or tls://...")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        servers.append(f"{parts.scheme}://{host}:{port}")
        if parts.username is not None and parts.password is not None:
            options = {"user": unquote(parts.username), "password": unquote(parts.password)}
        elif parts.username is not None:
            options = {"token": unquote(parts.username)}
    return servers, options
