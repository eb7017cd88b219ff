"""Rules 12 and 14 on a real process: user code that cannot be stopped costs its process, never the run."""

from __future__ import annotations

import asyncio
from pathlib import Path

from conveyor_runtime.client import Client
from tests.support.processes import runtime

DEAF = """
import time
from conveyor_runtime import Driver

def reconcile(payload, event, run_id, logger):
    logger.info("begun")
    while True:
        time.sleep(0.1)

driver = Driver("deaf", ("thing",), reconcile)
"""


async def test_a_process_whose_code_does_not_end_ends_itself(tmp_path: Path) -> None:
    (tmp_path / "deaf.py").write_text(DEAF)
    async with runtime(tmp_path) as running, Client(running.api_url) as client:
        driver = running.driver("driver", "run", f"{tmp_path / 'deaf.py'}:driver", name="deaf")
        await client.apply_definition({"name": "thing", "schema": {"type": "object"}})
        step = {"id": "deaf", "driver": "deaf", "timeout": "1s"}
        await client.apply_pipeline({"name": "p", "resource": "thing", "steps": [step]})
        accepted = await client.apply({"name": "one", "resource": "thing", "pipeline": "p", "spec": {}})
        run = await client.wait_run(accepted.run_id, timeout=60)
        assert run.status == "TimedOut", running.logs()
        async with asyncio.timeout(20):
            while driver.exited is None:
                await asyncio.sleep(0.05)
        assert driver.exited == 70, running.logs()
        assert next(line.message for line in await client.logs(run.run_id)) == "begun"
