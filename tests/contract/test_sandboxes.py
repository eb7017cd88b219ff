"""Sandboxes, on every backend that has them."""

from conveyor_runtime.testing.sandbox_cases import *  # noqa: F403
