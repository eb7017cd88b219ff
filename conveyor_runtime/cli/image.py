"""`image`: make what backends start from, where nobody else can provide it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from conveyor_runtime.cli.errors import say

__all__ = ["image_app"]

_HELP = """Make the guest image of the qemu backend.

\b
Example: conveyor image build qemu
"""

image_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, add_completion=False, help=_HELP)
_build_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, add_completion=False, help="Make an image.")
image_app.add_typer(_build_app, name="build")


@_build_app.callback()
def build() -> None:
    """Make an image."""


@_build_app.command("qemu")
def build_qemu(
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="DIR",
            envvar="CONVEYOR_QEMU_IMAGES",
            help="Where to put it, and where drivers look for it; left out, conveyor/qemu in the cache directory.",
        ),
    ] = None,
) -> None:
    """Make the small guest of the qemu backend from Debian packages.

    It downloads about 80 MB with this machine's apt, installs nothing, and does nothing when the image is made from
    the newest packages already.

    \b
    Example: conveyor image build qemu
    """
    from conveyor_runtime.orchestra.qemu.image import build
    from conveyor_runtime.orchestra.qemu.images import default_directory

    directory = output or default_directory()
    build(directory, say)
    print(directory)
