"""The file in which an operator tells the backends what they may do and keep."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from conveyor_runtime.cli.documents import invalid, read_mapping

if TYPE_CHECKING:
    from conveyor_runtime.config import BackendSettings

__all__ = ["backend_settings"]


def backend_settings(file: Path | None, native_root: Path | None) -> BackendSettings:
    """What `file` says, if there is one; the command line's `native_root` wins over it. Raises CliError."""
    from pydantic import TypeAdapter, ValidationError

    from conveyor_runtime.config import BackendSettings

    found = BackendSettings()
    if file is not None:
        document = read_mapping(str(file))
        try:
            found = TypeAdapter(BackendSettings).validate_python(document.value)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            pointer = "".join(f"/{part}" for part in first["loc"])
            raise invalid(document.locate(pointer), f"{pointer}: {first['msg']}") from None
    return replace(found, native_root=native_root or found.native_root)
