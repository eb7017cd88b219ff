"""How fast a backlog is worked off, by processes of ours and of peers."""

from __future__ import annotations

import contextlib

from conveyor_runtime.bus.streams import RESULTS
from tests.benchmarks import backlog, peers
from tests.benchmarks.harness import IN_FLIGHT, PYTHON, WARM_UP, Speed, process, server, work_off

DEFAULT = "2m"
"""The server's own sync interval."""

DRIVER = [*PYTHON, "conveyor_runtime", "driver", "run", "tests.benchmarks.noop:driver"]
DRIVER += ["--concurrency", str(IN_FLIGHT), "--log-level", "warning", "--backend", "native"]


async def ours(events: int, sync: str, *, claims: bool, processes: int = 1) -> Speed:
    """Driver processes of ours, over so many events after the warm-up."""
    warm_up = processes * WARM_UP
    async with server(sync) as on, contextlib.AsyncExitStack() as running:
        waiting = backlog.Backlog(on.bus)
        await waiting.prepare()
        await (waiting.runs if claims else waiting.plain)(warm_up + events)
        await waiting.close()
        env = {"CONVEYOR_NATS_URL": on.url}
        pids = [await running.enter_async_context(process(DRIVER, env)) for _ in range(processes)]
        return await work_off(on, RESULTS, warm_up, events, pids)


async def theirs(events: int, sync: str, peer: peers.Peer) -> Speed:
    """A process of a peer, over so many events after the warm-up."""
    async with server(sync) as on:
        await peers.fill(on.bus, WARM_UP + events, peer)
        async with process(peer.argv, peers.env(on.url)) as pid:
            return await work_off(on, peers.RESULTS, WARM_UP, events, [pid])
