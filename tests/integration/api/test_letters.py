"""Dead letters over HTTP and on the command line."""

from __future__ import annotations

import asyncio
import json
import sys

import httpx2
import pytest

from conveyor_runtime.client import Client, InvalidRequestError, NotFoundError
from conveyor_runtime.store import keep_dead_letter
from tests.integration.api.conftest import Serving


async def keep(serving: Serving, *messages: bytes) -> None:
    for number, data in enumerate(messages):
        await keep_dead_letter(
            serving.bus,
            "results",
            data,
            msg_id=f"m{number}",
            reason=f"reason {number}",
            subject="pipelines.driver.result",
            headers={"Cv-Run": "r", "Nats-Msg-Id": "never kept"},
        )


async def conveyor(serving: Serving, *arguments: str, answer: str = "") -> tuple[int, str, str]:
    """Run the command line on it: exit code, stdout, stderr."""
    command = [sys.executable, "-m", "conveyor_runtime", "--api-url", serving.url, "dlq", *arguments]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)
    out, err = await process.communicate(answer.encode())
    return process.returncode or 0, out.decode(), err.decode()


async def test_a_client_lists_reads_and_removes_them(
    serving: Serving, client: Client, http: httpx2.AsyncClient
) -> None:
    await keep(serving, b'{"a":1}', b"\xff", b"x")
    assert [(it.id, it.reason, it.run_id) for it in await client.dead_letters()] == [
        (number + 1, f"reason {number}", "r") for number in range(3)
    ]
    page = (await http.get("/dead-letters?limit=2")).json()
    assert ([it["id"] for it in page["items"]], page["next_cursor"]) == ([1, 2], "2")
    page = (await http.get("/dead-letters?limit=2&cursor=2")).json()
    assert ([it["id"] for it in page["items"]], page["next_cursor"]) == ([3], "")
    assert [(await client.dead_letter(number)).data for number in (1, 2)] == [{"a": 1}, "\N{REPLACEMENT CHARACTER}"]
    assert (await client.dead_letter(1)).headers == {"Cv-Run": "r"}
    await client.remove_dead_letter(2)
    for call in (client.dead_letter(2), client.remove_dead_letter(2), client.redrive(2)):
        with pytest.raises(NotFoundError, match="there is no dead letter 2"):
            await call
    assert await client.purge_dead_letters("1h") == 0
    with pytest.raises(InvalidRequestError):
        await client.purge_dead_letters("soon")
    for query in ("", "?older_than=1h&all=true", "?all=false"):
        assert (await http.delete(f"/dead-letters{query}")).status_code == 400
    assert await client.purge_dead_letters() == 2
    assert await client.dead_letters() == []


async def test_the_command_line_shows_redrives_and_purges_them(serving: Serving) -> None:
    await keep(serving, b'{"a":1}', b"x", b"y")
    code, out, _ = await conveyor(serving, "list")
    assert code == 0 and out.splitlines()[0].split() == ["ID", "KIND", "AGE", "RUN", "STEP", "SUBJECT", "REASON"]
    assert out.splitlines()[1].split()[:2] == ["1", "results"] and out.rstrip().endswith("reason 2")
    code, out, _ = await conveyor(serving, "show", "1", "-o", "json")
    assert json.loads(out)["data"] == {"a": 1}
    code, out, err = await conveyor(serving, "redrive", "1", "77")
    assert (code, out) == (1, "dead-letter/1 published: run r\n")
    assert err == "error: dead-letter/77: there is no dead letter 77\n"
    code, _, err = await conveyor(serving, "purge")
    assert code == 2 and "give IDs, or --older-than, or --all" in err
    code, out, _ = await conveyor(serving, "purge", "--all", answer="n\n")
    assert code == 1 and "Remove dead letters for good: all?" in out and "removed" not in out
    code, out, _ = await conveyor(serving, "purge", "2", "77", "--yes")
    assert (code, out) == (1, "dead-letter/2 removed\n")
    code, out, _ = await conveyor(serving, "purge", "--all", answer="y\n")
    assert code == 0 and out.endswith(" dead letters removed\n") and " 0 dead" not in out
    assert json.loads((await conveyor(serving, "list", "-o", "json"))[1]) == []
