"""The suite of every backend, in machines."""

import pytest

from conveyor_runtime.testing.sandbox_cases import *  # noqa: F403

pytestmark = pytest.mark.qemu
