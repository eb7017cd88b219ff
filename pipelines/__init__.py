"""The definitions, pipelines and samples that ship, as data."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from ruamel.yaml import YAML

__all__ = ["defaults", "definition", "definitions", "load", "pipeline", "pipelines"]


def load(*path: str) -> Any:
    """The content of a file of this package. Raises FileNotFoundError if there is none."""
    return YAML(typ="safe", pure=True).load(files(__name__).joinpath(*path).read_text(encoding="utf-8"))


def definition(name: str) -> dict[str, Any]:
    """A resource definition, as it is posted."""
    return _document("definitions", name)


def definitions() -> list[str]:
    """Names of all definitions."""
    return _names("definitions")


def pipeline(name: str) -> dict[str, Any]:
    """A pipeline, as it is posted."""
    return _document("pipelines", name)


def pipelines() -> list[str]:
    """Names of all pipelines."""
    return _names("pipelines")


def defaults() -> dict[str, dict[str, Any]]:
    """Spec fields used where a resource leaves them out, per type."""
    found: dict[str, dict[str, Any]] = load("defaults.yaml")
    return found


def _document(folder: str, name: str) -> dict[str, Any]:
    if name not in _names(folder):
        raise FileNotFoundError(f"there is no {name!r} among the {folder}: {', '.join(_names(folder))}")
    found: dict[str, Any] = load(folder, f"{name}.yaml")
    return found


def _names(folder: str) -> list[str]:
    entries = files(__name__).joinpath(folder).iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))
