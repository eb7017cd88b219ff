"""Conveyor Runtime: resources in, runs out, nothing lost."""

__version__ = "0.1.0.dev0"
