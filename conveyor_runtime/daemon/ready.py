"""Where a running `up` or `serve` tells its addresses: in its data directory, and where `--ready-file` says."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger(__name__)

#: In the data directory, always: commands look for it.
READY_FILE = "ready.json"


@contextmanager
def told(addresses: Mapping[str, str], data_dir: Path, asked: Path | None) -> Iterator[None]:
    """The addresses in files for as long as the block lasts. Raises OSError if the one asked for cannot be written."""
    text = json.dumps(addresses)
    written: list[Path] = []
    try:
        try:
            data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            written.append(_write(data_dir / READY_FILE, text))
        except OSError as error:  # with a bus elsewhere, nothing else needs the folder
            path, why = data_dir / READY_FILE, error.strerror or error
            log.warning("%s cannot be written: %s; driver commands need --nats-url then", path, why)
        if asked is not None:
            written.append(_write(asked, text))
        yield
    finally:
        for path in written:
            with suppress(OSError):
                if path.read_text() == text:  # another `serve` may have told its own meanwhile
                    path.unlink()


def _write(path: Path, text: str) -> Path:
    """Whole or not at all, and readable by this user only: there are credentials in it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    partial.replace(path)
    return path
