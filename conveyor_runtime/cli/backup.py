"""`backup` and `restore`: all that an installation has stored, in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from conveyor_runtime.cli import options
from conveyor_runtime.cli.connection import find_bus
from conveyor_runtime.cli.errors import program, say

__all__ = ["backup", "restore"]


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write; one of that name is replaced.")],
    nats_url: Annotated[
        str,
        typer.Option(
            "--nats-url",
            metavar="URL",
            envvar="CONVEYOR_NATS_URL",
            help="The NATS server of the runtime; left out, that of ./.conveyor/ready.json, which `up` keeps.",
        ),
    ] = "",
) -> None:
    """Write all that is stored to a file, while it is running.

    Everything acknowledged before it begins is in it: resources, runs, results, dispatches, logs, dead letters. It
    holds what specs and logs hold, secrets too, so it is readable by you only.

    \b
    Example: conveyor backup monday.backup
    """
    from conveyor_runtime.daemon.backup import run_backup

    told = run_backup(file, find_bus(nats_url))
    say(f"{file}: {told.messages} messages of installation {told.installation} as of {told.at}, {told.bytes} bytes")


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that `backup` has written.")],
    nats_url: Annotated[
        str,
        typer.Option("--nats-url", metavar="URL", help="Restore to this NATS server, which has no streams of ours."),
    ] = "",
    data: options.DataDir = Path(".conveyor"),
) -> None:
    """Restore a backup to an empty data directory.

    With --nats-url, to a fresh NATS server. Runs that were under way go on once `up` or `serve` and drivers run again.
    Processes that knew the store before notice, and end. Do not let it run beside an original that goes on: what was
    under way at the time of the backup would be worked on twice.

    \b
    Example: conveyor restore monday.backup --data fresh
    """
    from conveyor_runtime.daemon.restore import run_restore

    told = run_restore(file, nats_url, data)
    say(f"restored {told.messages} messages of installation {told.installation} as of {told.at}")
    say(f"WARNING: whatever was acknowledged after {told.at} is gone; post it again")
    where = "--nats-url ..." if nats_url else f"--data {data}"
    say(f"go on with `{program()} up {where}` (or serve)")
