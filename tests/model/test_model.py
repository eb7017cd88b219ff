"""The runtime's own engine, store and worker against the model of the protocol. MODEL_EXAMPLES asks for more."""

from __future__ import annotations

import os
from functools import partial

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from conveyor_runtime.bus import EmbeddedServer
from tests.model.machine import Machine
from tests.model.mirror import MirrorServer, Real

pytestmark = pytest.mark.timeout(3600)

EXAMPLES = int(os.environ.get("MODEL_EXAMPLES") or 45)


def profile(examples: int) -> settings:
    """What a failure prints repeats it: its steps, and a line for `reproduce_failure`."""
    return settings(
        max_examples=examples,
        stateful_step_count=40,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


def test_in_memory() -> None:
    run_state_machine_as_test(Machine, settings=profile(EXAMPLES))


def test_on_a_real_server(nats_server: EmbeddedServer) -> None:
    """Fewer, as each operation is done twice and compared: what holds in memory then holds on the real store."""
    real = Real(nats_server.url)
    try:
        real_machine = type("RealMachine", (Machine,), {"server": partial(MirrorServer, real=real)})
        run_state_machine_as_test(real_machine, settings=profile(max(EXAMPLES // 9, 1)))
    finally:
        real.close()
