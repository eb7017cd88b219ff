"""`demo`: the whole product in a minute, on this project's own repository."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from conveyor_runtime.cli.errors import ExitCode, exit_code_of, program, say

if TYPE_CHECKING:
    from conveyor_runtime.client import Run

__all__ = ["demo"]

_COUNT = """
echo "$(find . -type f ! -path './.git/*' | wc -l) files, the most of these kinds:"
find . -type f -name '*.*' ! -path './.git/*' | sed 's/.*\\.//' | sort | uniq -c | sort -rn | head -n 5
"""
_CHECK = """
if find . -type f ! -path './.git/*' -exec grep -lE '^(<<<<<<<|>>>>>>>) ' {} +; then
  echo 'these hold merge conflicts'; exit 1
fi
"""
_PACK = """
set -- *
mkdir build-output
tar -czf build-output/source.tar.gz "$@"
echo "packed $(tar -tzf build-output/source.tar.gz | wc -l) entries, $(wc -c < build-output/source.tar.gz) bytes"
"""
_SUM = "cd build-output && sha256sum source.tar.gz > SHA256SUMS && cat SHA256SUMS && sha256sum -c SHA256SUMS"

#: What is built. Plain sh and the commands busybox has, so that it runs in the smallest image and in none.
COMMANDS = tuple(command.strip() for command in (_COUNT, _CHECK, _PACK, _SUM))


def demo() -> None:
    """Build this project's own repository, start to end.

    It starts everything in a temporary directory on free ports, clones the repository with git, builds it through the
    four shipped drivers with a live log, and removes it all again. It uses Docker if an engine answers.

    \b
    Example: conveyor demo
    """
    import asyncio
    import signal
    import tempfile

    import uvloop

    from conveyor_runtime.cli.demo_repository import find_repository
    from conveyor_runtime.cli.serving import start_logging

    start_logging("warning", "text")
    with tempfile.TemporaryDirectory(prefix="conveyor-demo-") as folder:
        repository = find_repository(Path(folder))
        say(f"demo: building {repository.path} at {repository.commit[:12]}")
        if repository.note:
            say(f"demo: {repository.note}")
        try:
            run = uvloop.run(_build(Path(folder), f"file://{repository.path}", repository.commit))
        except asyncio.CancelledError:
            raise typer.Exit(128 + signal.SIGTERM) from None
    code = exit_code_of(run.status)
    if code is ExitCode.SUCCESS:
        up, then = f"`{program()} up`", f"`{program()} run -f FILE --watch`"
        say(f"\ndemo: that was all of it. Next: {up}, and in another terminal {then}.")
    raise typer.Exit(code)


async def _build(folder: Path, repository: str, commit: str) -> Run:
    import asyncio
    import signal

    from conveyor_runtime.cli.watch import print_closing, watch
    from conveyor_runtime.client import Client
    from conveyor_runtime.config import ApiSettings, BackendSettings, BusSettings, DriverSettings
    from conveyor_runtime.daemon.up import UpSettings, up
    from conveyor_runtime.security import new_token

    task = asyncio.current_task()
    assert task is not None
    # As Ctrl-C does: everything is taken down again.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    image = await _image()
    backend = "docker" if image else "native"
    settings = UpSettings(
        bus=BusSettings(data_dir=folder / "data"),
        api=ApiSettings(port=0, token=new_token()),
        driver=DriverSettings(
            backend=backend, backends=BackendSettings(native_root=folder / "native"), allow_file_repositories=True
        ),
    )
    resource: dict[str, Any] = {
        "resource": "ci-build",
        "name": "demo",
        "spec": {"repository": repository, "ref": commit, "commands": list(COMMANDS), "timeout": "2m"},
    }
    if image:
        resource["spec"]["image"] = image
    say("demo: starting nats-server, API, engine and four drivers")
    async with up(settings) as running, Client(running.api_url, token=running.token) as client:
        applied = await client.apply(resource)
        say(f"demo: posted ci-build/demo, run {applied.run_id}\n")
        run = await watch(client, applied.run_id, sys.stdout)
        print_closing(run)
    return run


async def _image() -> str | None:
    """The image to build in; None = natively, and it is said why."""
    from conveyor_runtime.errors import BackendError, BackendUnavailable

    try:
        from conveyor_runtime.orchestra.docker.demo_image import demo_image

        image = await demo_image(say=lambda text: say(f"demo: {text}"))
    except BackendUnavailable:
        say("demo: no Docker engine answers, so this builds in a directory of its own (native backend)")
        return None
    except BackendError as error:
        say(f"demo: there is Docker, but no image to build in ({error}); going on with the native backend")
        return None
    say(f"demo: building in a container of {image}")
    return image
