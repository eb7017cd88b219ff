"""A driver on nats.go, taking its consumer as Conveyor's SDK does, serves a step of our pipeline while it is killed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest

from tests.conftest import StartServer
from tests.integration.engine.test_runs import recorder
from tests.interop.conftest import GoProcess
from tests.support.cluster import cluster_on
from tests.support.streams import give_back_after

pytestmark = pytest.mark.timeout(400)

RunGo = Callable[..., GoProcess]


async def test_it_serves_a_step_of_ours_and_is_killed_in_between(start_server: StartServer, run_go: RunGo) -> None:
    server = await start_server()
    calls: list[tuple[str, str]] = []
    async with cluster_on(server.url) as cluster:
        go = run_go("driver", server.url, "afar", "thing", "60ms")
        await go.start()
        await give_back_after(cluster.bus, "afar", 5.0)
        await cluster.define("thing")
        # It acknowledges before it works: what it is killed over ends by the step's timeout, visibly.
        await cluster.pipeline("p", "thing", "a", "afar", "b", timeout=2.0)
        for name in "ab":
            await cluster.add(recorder(name, calls, direct=False))
        runs = [(await cluster.post("thing", f"n{number}", "p", x=number)).run_id for number in range(20)]
        for before in (2, 6):
            await go.until(lambda lines, n=before: [line for line in lines if line.startswith("took")][n:])  # type: ignore[misc]
            await go.kill()
            await asyncio.sleep(0.2)
            await go.start()
            await give_back_after(cluster.bus, "afar", 5.0)
        ended = [await cluster.ended(run_id, 60) for run_id in runs]
        lost = [run for run in ended if run.status == "TimedOut"]
        done = [run for run in ended if run.status == "Succeeded"]
        assert len(lost) <= 2 and len(lost) + len(done) == 20, "at most what it was killed over"
        for run in done:
            assert run.steps[1].data == {"by": "go"} and run.steps[1].message == "done in Go"
            said = [line.message for line in await cluster.logs(run.run_id) if line.driver == "afar"]
            assert said == ["from Go"]
        took = Counter(line.split()[1] for line in go.lines if line.startswith("took"))
        assert set(took) <= set(runs) and set(took.values()) == {1}, "handed out once, however often it is killed"
        assert Counter(name for name, _ in calls) == {"a": 20, "b": len(done)}, "ours worked each step once"
