"""Who is dead, on a clock the test moves."""

from __future__ import annotations

import os
import subprocess
from typing import Any

import pytest

from conveyor_runtime.engine.nodes import NODE_GONE
from conveyor_runtime.kit import identity
from conveyor_runtime.models import LEASE_SILENCE
from tests.unit.engine.world import Watcher


async def test_a_silent_lease_is_dead_after_45_seconds_of_our_own_clock() -> None:
    """Rule 11."""
    watcher = Watcher()
    told: list[str] = []
    watcher.liveness.listen(told.append)
    await watcher.instance()
    await watcher.pass_time(LEASE_SILENCE)
    assert not watcher.liveness.is_dead("i") and told == []
    await watcher.pass_time(1)
    assert watcher.liveness.is_dead("i") and told == ["i"]
    await watcher.pass_time(5)
    assert told == ["i"], "told once"


async def test_a_renewal_starts_the_time_anew() -> None:
    """Rule 11."""
    watcher = Watcher()
    for _ in range(5):
        await watcher.instance()
        await watcher.pass_time(LEASE_SILENCE - 1)
    assert not watcher.liveness.is_dead("i")


async def test_who_came_back_and_falls_silent_again_is_told_of_again() -> None:
    """Rule 11."""
    watcher = Watcher()
    told: list[str] = []
    watcher.liveness.listen(told.append)
    for _ in range(2):
        await watcher.instance()
        await watcher.pass_time(LEASE_SILENCE + 1)
    assert told == ["i", "i"]


async def test_a_reconnect_starts_the_time_anew_and_a_cut_off_observer_says_nothing() -> None:
    """Rule 11."""
    watcher = Watcher()
    await watcher.instance()
    watcher.bus.connected = False
    await watcher.pass_time(1000)
    assert not watcher.liveness.is_dead("i")
    watcher.bus.connected, watcher.bus.connected_since = True, watcher.time
    await watcher.pass_time(LEASE_SILENCE)
    assert not watcher.liveness.is_dead("i")
    await watcher.pass_time(1)
    assert watcher.liveness.is_dead("i")


async def test_an_observer_that_stood_still_has_seen_nothing_meanwhile() -> None:
    """Rule 11: renewals may be waiting in our own socket."""
    watcher = Watcher()
    told: list[str] = []
    watcher.liveness.listen(told.append)
    await watcher.instance()
    await watcher.pass_time(5)
    watcher.time += 600
    assert not watcher.liveness.is_dead("i")
    await watcher.pass_time(LEASE_SILENCE)
    assert not watcher.liveness.is_dead("i") and told == []
    await watcher.pass_time(2)
    assert told == ["i"]


@pytest.mark.parametrize("fields", [{"ended": True}, {"gone": "said so"}])
async def test_who_ended_or_is_gone_is_dead_at_once(fields: dict[str, Any]) -> None:
    """Rule 11."""
    watcher = Watcher()
    told: list[str] = []
    watcher.liveness.listen(told.append)
    await watcher.instance(**fields)
    assert watcher.liveness.is_dead("i") and told == ["i"]


async def test_who_is_not_there_is_dead_and_the_engine_never_is() -> None:
    watcher = Watcher()
    assert watcher.liveness.is_dead("nobody") and not watcher.liveness.is_dead("engine")


async def test_a_neighbour_whose_process_is_no_more_is_declared_gone() -> None:
    """Rule 11."""
    watcher = Watcher()
    child = subprocess.Popen(["sleep", "100"])
    here = {"boot_id": identity.boot_id(), "pid_namespace": identity.pid_namespace()}
    start = identity.start_time(child.pid) or 0
    own = identity.start_time(os.getpid()) or 0
    neighbours = {
        "alive": {**here, "pid": os.getpid(), "start_time": own},
        "reborn": {**here, "pid": os.getpid(), "start_time": own - 1},
        "child": {**here, "pid": child.pid, "start_time": start},
        "boot": {**here, "boot_id": "other", "pid": 1 << 22, "start_time": 1},
        "space": {**here, "pid_namespace": "other", "pid": 1 << 22, "start_time": 1},
    }
    for name, fields in neighbours.items():
        from conveyor_runtime.models import Instance
        from conveyor_runtime.store import keys
        from tests.unit.engine.world import NOW

        await watcher.put(keys.instance(name), Instance(id=name, driver="d", started_at=NOW, renewed_at=NOW, **fields))
    await watcher.liveness.look()
    assert {name for name in neighbours if watcher.liveness.is_dead(name)} == {"reborn"}
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    await watcher.liveness.look()
    assert {name for name in neighbours if watcher.liveness.is_dead(name)} == {"reborn", "child"}
    child.wait()


async def test_a_node_is_gone_after_ten_minutes_without_the_driver() -> None:
    """Rule 5."""
    watcher = Watcher()
    await watcher.instance(nodes=("n1",))
    await watcher.pass_time(30)
    assert not watcher.nodes.is_gone("d", "n1")
    assert not watcher.nodes.is_gone("d", "n2")
    await watcher.pass_time(NODE_GONE - 60)
    await watcher.instance(nodes=("n1",))
    await watcher.pass_time(60)
    await watcher.instance(nodes=("n1",))
    assert watcher.nodes.is_gone("d", "n2") and not watcher.nodes.is_gone("d", "n1")
    await watcher.instance("j", nodes=("n2",))
    assert not watcher.nodes.is_gone("d", "n2")
    await watcher.instance("j", nodes=("n2",), ended=True)
    assert not watcher.nodes.is_gone("d", "n2")
    await watcher.pass_time(NODE_GONE)
    assert watcher.nodes.is_gone("d", "n2")
    watcher.time += 100
    assert not watcher.nodes.is_gone("d", "n2"), "who stood still does not know"
    await watcher.pass_time(NODE_GONE)
    assert not watcher.nodes.is_gone("d", "n2"), "nor how it was meanwhile: a process may have come and gone"
    await watcher.pass_time(1)
    assert watcher.nodes.is_gone("d", "n2")
