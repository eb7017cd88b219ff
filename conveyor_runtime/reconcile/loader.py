"""Finds drivers: installed ones by entry point, a user's own by `module:attribute`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from conveyor_runtime.errors import ConfigError
from conveyor_runtime.reconcile.driver import Driver

GROUP = "conveyor.drivers"


def installed_drivers() -> Mapping[str, EntryPoint]:
    """Entry points of all installed drivers by name; nothing is imported yet."""
    return {point.name: point for point in entry_points(group=GROUP)}


def load_driver(spec: str) -> Driver:
    """The driver an installed name or `module:attribute` stands for (`path/to/file.py:attribute` works too).

    Raises ConfigError, saying what was looked for and where.
    """
    installed = installed_drivers()
    if spec in installed:
        return _checked(installed[spec].load(), spec)
    module_name, colon, attribute = spec.partition(":")
    if not colon:
        known = ", ".join(sorted(installed)) or "none"
        raise ConfigError(f"no driver named {spec!r} is installed (installed: {known}); your own is MODULE:ATTRIBUTE")
    module_name = _importable(module_name)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name.partition(".")[0]:
            raise
        raise ConfigError(f"{spec}: there is no module {module_name} here or in the installed packages") from None
    if not hasattr(module, attribute):
        candidates = ", ".join(name for name, value in vars(module).items() if isinstance(value, Driver)) or "none"
        raise ConfigError(f"{spec}: {module_name} has no {attribute!r}; drivers in it: {candidates}")
    return _checked(getattr(module, attribute), spec)


def _importable(module: str) -> str:
    """The module's name, its folder put on the path: a user's file lies where they stand, or at a path they give."""
    folder = Path.cwd()
    if module.endswith(".py") or "/" in module:
        path = Path(module).resolve()
        folder, module = path.parent, path.stem
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return module


def _checked(value: object, spec: str) -> Driver:
    if not isinstance(value, Driver):
        raise ConfigError(f"{spec} is a {type(value).__name__}, not a Driver")
    return value
