"""Machines that are really booted, on the loop the product runs on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from conveyor_runtime.testing import Place
from tests.support.qemu import QemuPlace, guest_image, qemu_place, shared_machines

__all__ = ["guest_image", "qemu_place", "shared_machines"]


def pytest_asyncio_loop_factories(config: Any, item: Any) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop the product runs on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
def place(qemu_place: QemuPlace) -> Place:
    return qemu_place
