"""Work that does not end, and what can never be stored: bounded, said, and never done twice for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any, cast

import orjson

from conveyor_runtime.bus import Committer, Message, PayloadTooLarge, Receipt
from conveyor_runtime.models import DriverResult
from conveyor_runtime.reconcile import DriverLogger
from conveyor_runtime.reconcile.invoke import Stop
from tests.unit.reconcile.fakes import FakeCommitter, a_logger
from tests.unit.reconcile.test_dispatch import Worker


class Narrow(FakeCommitter):
    """A stream that takes no message above a size."""

    limit = 400

    async def commit(self, unit: Sequence[Message], *, timeout: float = 10.0) -> list[Receipt]:
        if any(len(message.data) > self.limit for message in unit):
            raise PayloadTooLarge("too large")
        return await super().commit(unit, timeout=timeout)


async def test_user_code_that_does_not_stop_keeps_its_claim_until_its_process_ends() -> None:
    """Rules 12 and 14: nothing in the claim lets another start while the old code may still act."""
    let_go = threading.Event()
    started = asyncio.Event()
    loop = asyncio.get_running_loop()
    ends: list[Stop] = []

    def deaf(payload: str, event: str, run_id: str, logger: DriverLogger) -> None:
        loop.call_soon_threadsafe(started.set)
        let_go.wait(10)

    worker = Worker(deaf)
    worker.dispatch.deps.stuck = ends.append
    object.__setattr__(worker.dispatch.deps.settings, "kill_grace", -1.9)
    await worker.start()
    handling = asyncio.create_task(worker.handle())
    await started.wait()
    [job] = worker.dispatch.jobs
    job.stop(Stop.LEASE)
    assert await handling == []
    assert ends == [Stop.LEASE]
    assert await worker.handle() == ["nak"], "a redelivery must not take the claim for abandoned"
    claim = await worker.claim()
    assert claim is not None
    assert not claim.given_up
    assert worker.dispatch.deps.executor.busy
    let_go.set()


async def test_a_result_too_large_for_the_bus_ends_the_attempt_as_an_error() -> None:
    """I8: it would otherwise be worked on again for ever."""

    async def much(payload: str, event: str, run_id: str, logger: DriverLogger) -> DriverResult:
        return DriverResult(success=True, data="x" * 2000)

    worker = Worker(much)
    worker.results = Narrow()
    Narrow.limit = 700
    worker.dispatch.deps.results = cast(Committer, worker.results)
    await worker.start()
    assert await worker.handle() == ["ack"]
    [result] = worker.results.lines
    assert result["cv"]["status"] == "Error"
    assert "cannot be stored" in result["cv"]["message"]


async def test_a_line_the_bus_refuses_is_replaced_by_a_note_and_holds_nothing_up() -> None:
    committer = Narrow()
    Narrow.limit = 600
    logger = a_logger(committer)
    logger.info("before")
    logger.info("y" * 2000)
    logger.info("after")
    async with asyncio.timeout(5):
        await logger.flush()
    await logger.close()
    assert committer.texts[0] == "before"
    assert "could not be stored" in committer.texts[1]
    assert committer.texts[2] == "after"
    seqs: list[Any] = [orjson.loads(message.data)["seq"] for message in committer.stored]
    assert seqs == [1, 2, 3]
