"""What `serve` has before anybody applies anything, and what it leaves as it is."""

from __future__ import annotations

from pathlib import Path

from conveyor_runtime.client import Client
from tests.support.processes import Runtime


async def test_what_ships_is_there_and_an_operators_own_version_of_it_stays(tmp_path: Path) -> None:
    runtime = Runtime(tmp_path)
    await runtime.start()
    try:
        async with Client(runtime.api_url) as client:
            shipped = await client.get_definition("ci-build")
            assert shipped.pipeline == "ci-build" and (await client.get_definition("task")).name == "task"
            assert (await client.get_pipeline("ci-build")).resource == "ci-build"
            own = shipped.model_copy(update={"description": "ours"})
            await client.apply_definition(own.model_dump(mode="json", by_alias=True))
        runtime.stop()
        await runtime.start()
        async with Client(runtime.api_url) as client:
            assert (await client.get_definition("ci-build")).description == "ours"
    finally:
        runtime.stop()
