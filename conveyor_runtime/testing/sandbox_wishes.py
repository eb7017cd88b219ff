"""The same wishes of sandboxes, and what makes no sense for one."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from conveyor_runtime.errors import TerminalError
from conveyor_runtime.orchestra import ExitStatus, Port, Sandbox, Wish
from conveyor_runtime.testing.extras import answers, free_port
from conveyor_runtime.testing.place import Place, Said, SandboxBackend, run
from conveyor_runtime.testing.wishes import PROOFS, proven_or_refused

SENSELESS: dict[str, dict[str, Any]] = {
    "command": {"command": ("true",)},
    "stdin": {"stdin": b"x"},
    "timeout": {"timeout": 60.0},
}


@pytest.mark.parametrize("wish", PROOFS)
async def test_a_sandbox_keeps_it_or_is_refused(place: Place, backend: SandboxBackend, wish: Wish) -> None:
    numbers = itertools.count()

    async def inside(script: str, **options: Any) -> tuple[ExitStatus, Said]:
        sandbox = await place.start_sandbox(id=f"sandbox-{next(numbers)}", **options)
        return await run(sandbox, script)

    await proven_or_refused(wish, place.sandboxes_keep, place, inside)


async def test_a_sandbox_publishes_a_port(place: Place, backend: SandboxBackend) -> None:
    asked = Port(8080, host=free_port())
    sandbox = await place.start_sandbox(ports=(asked,))
    serving = asyncio.create_task(run(sandbox, "while :; do echo hello | nc -l -p 8080; done"))
    try:
        await answers(asked)
    finally:
        serving.cancel()
        await asyncio.wait([serving])


@pytest.mark.parametrize("what", SENSELESS)
async def test_what_a_sandbox_cannot_have_is_refused(place: Place, backend: SandboxBackend, what: str) -> None:
    with pytest.raises(TerminalError):
        await backend.start_sandbox(place.ns(), place.task(**SENSELESS[what]), place.owner())
    assert await backend.namespaces(place.installation) == []


async def test_the_user_of_one_exec(place: Place, sandbox: Sandbox) -> None:
    if "user" not in place.sandboxes_keep:
        with pytest.raises(TerminalError):
            await run(sandbox, "true", user="12345")
        return
    _, said = await run(sandbox, "id -u", user="12345")
    assert said.stdout == b"12345\n"
