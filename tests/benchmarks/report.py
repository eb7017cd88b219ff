"""How benchmarks say what they measured."""

from __future__ import annotations

from collections.abc import Mapping


def row(what: str, setting: str, figures: Mapping[str, float]) -> None:
    """One line of figures on stdout."""
    text = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
    print(f"{what:<12} {setting:<8} {text}", flush=True)
