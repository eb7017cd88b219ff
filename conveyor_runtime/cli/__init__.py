"""The command line: it parses and prints, and leaves the rest to `client` and `daemon`.

`app` has the commands; one module per group of them beside it. What all share: `options` (parameters), `connection`
(the way to the API), `documents` (files in), `output` (data out), `errors` (exit codes). Everything heavy is imported
where it is used, so that `--help`, completion and typing errors answer at once.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Entry point of `conveyor`."""
    from conveyor_runtime.cli.app import run

    sys.exit(run())
