"""What is there when everything is whole again: through the API, in the streams, on the disk, among the processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from conveyor_runtime.bus import Bus, Committer
from conveyor_runtime.bus.messages import next_by_subject
from conveyor_runtime.bus.streams import DLQ, STATE, StoredMsg
from conveyor_runtime.client import Client, LoggedLine, ResourceInfo
from conveyor_runtime.models import Claim, Instance, Run, RunRecord, Status
from conveyor_runtime.store import KvStore, State
from tests.chaos import journal
from tests.chaos.fleet import MARK, Fleet, Member
from tests.chaos.load import Followed, Load, Op

#: A claim's place: run, step, attempt, takeover.
Numbers = tuple[str, str, int, int]

_ALIVE = [status for status in Status if not status.terminal and status not in (Status.SKIPPED, Status.AWAITING_RETRY)]


@dataclass
class Evidence:
    """All that the checks know. Times are `time.monotonic()` but in records, to which `wall` is to be added."""

    fleet: Fleet
    journal: list[journal.Line]
    ops: list[Op]
    followed: list[Followed]
    shared: set[str]
    runs: dict[str, RunRecord]
    shown: dict[str, Run]
    resources: dict[tuple[str, str], ResourceInfo]
    claims: dict[Numbers, Claim]
    instances: dict[str, Instance]
    logs: dict[str, list[LoggedLine]]
    letters: list[StoredMsg]
    unfinished: list[str]
    waited: float
    followers_waited: float = 0.0
    overlaps: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    wall: float = field(default_factory=lambda: time.time() - time.monotonic())


@dataclass(frozen=True)
class Taken:
    """What the foreign driver says of an attempt: it took it, or did it. `at` is on `time.monotonic()`."""

    what: str
    run_id: str
    event: str
    step: str
    attempt: int
    pid: int
    at: float


def taken_by(member: Member, wall: float) -> list[Taken]:
    """What it printed in all its lives."""
    found = []
    for line in member.log.read_text(errors="replace").splitlines():
        match line.split():
            case ["took" | "did" as what, run_id, event, step, attempt, pid, time_ns]:
                found.append(Taken(what, run_id, event, step, int(attempt), int(pid), int(time_ns) / 1e9 - wall))
    return found


async def settled(fleet: Fleet, patience: float, say: Callable[[str], None]) -> tuple[list[str], float]:
    """Wait until no run is under way; those that still are after `patience` seconds, and how long it took."""
    began = time.monotonic()
    told = began
    async with Client(fleet.api_urls[0], timeout=20.0) as client:
        while True:
            alive = None
            with contextlib.suppress(Exception):
                alive = await client.list_runs(status=_ALIVE, limit=1000)
                owed = [it for it in await client.list_resources() if it.active_run or it.queue]
            waited = time.monotonic() - began
            if alive is not None and not alive and not owed:
                return [], waited
            names = ["the API does not answer"] if alive is None else [_shown(run) for run in alive]
            if alive is not None and not alive:
                names = [f"{it.resource}/{it.name} owes {it.active_run} {it.queue}" for it in owed]
            if waited > patience:
                return names, waited
            if time.monotonic() - told > 5.0:
                told = time.monotonic()
                say(f"waiting for {len(names)}: {names[0]}")
            await asyncio.sleep(0.5)


def _shown(run: Run) -> str:
    steps = ", ".join(f"{step.id} {step.status} {step.attempt} {step.message}".strip() for step in run.steps)
    return f"run {run.run_id} of {run.resource.name}: {run.status} {run.reason} ({steps})"


async def gather(fleet: Fleet, load: Load, unfinished: list[str], waited: float) -> Evidence:
    """Everything there is to know."""
    bus = await Bus.connect(fleet.nats_url, name="chaos")
    committer = Committer(bus, STATE)
    try:
        store = KvStore(bus, committer)
        runs = [RunRecord.model_validate_json(it.value) for it in await store.list("run.")]
        claims = {}
        for stored in await store.list("claim."):
            _, run_id, step, attempt, takeover = stored.key.split(".")
            claims[(run_id, step, int(attempt), int(takeover))] = Claim.model_validate_json(stored.value)
        instances = {it.id: it for it in await State(store).instances()}
        letters = await _letters(bus)
    finally:
        await committer.close()
        await bus.close()
    async with Client(fleet.api_urls[1], timeout=30.0) as client:
        shown = await client.list_runs(limit=1_000_000)
        resources = await client.list_resources()
        logs: dict[str, list[LoggedLine]] = {}
        for run in shown:
            logs[run.run_id] = await client.logs(run.run_id)
    overlaps = fleet.folder / "overlaps"
    return Evidence(
        fleet=fleet,
        journal=journal.read(fleet.journal),
        ops=load.ops,
        followed=load.followed,
        shared=load.shared,
        runs={run.run_id: run for run in runs},
        shown={run.run_id: run for run in shown},
        resources={(it.resource, it.name): it for it in resources},
        claims=claims,
        instances=instances,
        logs=logs,
        letters=letters,
        unfinished=unfinished,
        waited=waited,
        overlaps=overlaps.read_text().splitlines() if overlaps.exists() else [],
    )


async def _letters(bus: Bus) -> list[StoredMsg]:
    found: list[StoredMsg] = []
    while (message := await next_by_subject(bus, DLQ, "cv.dlq.>", found[-1].seq + 1 if found else 1)) is not None:
        found.append(message)
    return found


async def emptied(fleet: Fleet, patience: float) -> list[str]:
    """What the native backend still has after `patience` seconds."""
    until = time.monotonic() + patience
    while True:
        left = sorted(entry.name for entry in fleet.native_root.glob("cv-*")) if fleet.native_root.exists() else []
        if not left or time.monotonic() > until:
            return left
        await asyncio.sleep(0.5)


def processes_left(fleet: Fleet, run_ids: set[str]) -> list[str]:
    """Processes that come from the fleet though all of it has ended."""
    marks = {f"{MARK}={fleet.mark}".encode(), *(f"CONVEYOR_RUN_ID={run_id}".encode() for run_id in run_ids)}
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if marks & set((entry / "environ").read_bytes().split(b"\0")):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                    found.append(f"process {entry.name} {command[:120]}")
    return found
