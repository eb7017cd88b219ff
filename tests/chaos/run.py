"""One run of the proof: start, break, heal, wait, look."""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from conveyor_runtime.bus import Bus, subjects
from conveyor_runtime.client import Client, ClientError
from tests.chaos import evidence
from tests.chaos.checks import CHECKS
from tests.chaos.enough import enough_happened
from tests.chaos.faults import Faults, cancelled
from tests.chaos.fleet import FOREIGN, Fleet
from tests.chaos.load import BUILD_PIPELINE, FOREIGN_PIPELINE, PIPELINE, Load
from tests.chaos.verdict import Verdict
from tests.chaos.worker import TYPE

#: Seconds after everything is whole until every run must have ended: a lease's silence, a sweep, and their work.
PATIENCE = 150.0

#: Seconds until the janitor must have cleaned up behind them.
_JANITOR = 90.0


@dataclass(frozen=True)
class Settings:
    """`seconds` of faults; `replicas` is how many NATS servers there are, `go_driver` a program to be one of the
    drivers."""

    seed: int
    seconds: float
    replicas: int = 1
    resources: int = 16
    builds: int = 2
    keep: bool = False
    go_driver: Path | None = None


class Chaos:
    """`run` tells whether every promise was kept; `folder` is kept if not."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.folder = Path(tempfile.mkdtemp(prefix=f"cv-chaos-{settings.seed}-"))
        self.fleet = Fleet(self.folder, settings.replicas, settings.go_driver)
        self._began = time.monotonic()
        self._story = (self.folder / "story.log").open("a", buffering=1)

    def note(self, text: str) -> None:
        """Into the story of this run, with `time.monotonic()` as in the journal."""
        self._story.write(f"{time.monotonic():.3f} {text}\n")

    def say(self, text: str) -> None:
        """To whoever watches, too."""
        self.note(text)
        print(f"[{time.monotonic() - self._began:6.1f}] {text}", flush=True)

    async def run(self) -> bool:
        """Run it all."""
        settings = self.settings
        servers = f"{settings.replicas} nats-server{'s' * (settings.replicas > 1)}"
        self.say(f"CHAOS_SEED={settings.seed} CHAOS_SECONDS={settings.seconds:g} CHAOS_REPLICAS={settings.replicas}")
        try:
            await self._start()
            self.say(f"{servers}, 2 engines, {len(self.fleet.workers)} drivers; {self.folder}")
            found = await self._break_and_look()
        finally:
            codes = await asyncio.to_thread(self._stop)
            await asyncio.gather(*(it.proxy.close() for it in self.fleet.members if it.proxy is not None))
        found.left += [f"{name} ended with {code} on SIGTERM" for name, code in codes.items() if code != 0]
        found.left += evidence.processes_left(self.fleet, set(found.runs))
        return self._judge([*(check(found) for check in CHECKS), enough_happened(found, settings.seconds)])

    def _judge(self, verdicts: list[Verdict]) -> bool:
        for verdict in verdicts:
            self.say(f"{'FAILED' if verdict.wrong else 'ok    '} {verdict.name}: {verdict.counted}")
            for text in verdict.wrong[:20]:
                self.say(f"       {text}")
        kept = not any(verdict.wrong for verdict in verdicts)
        self.say("every promise was kept" if kept else f"CHAOS_SEED={self.settings.seed} FAILED; kept: {self.folder}")
        self._story.close()
        if kept and not self.settings.keep:
            shutil.rmtree(self.folder)
        return kept

    # -- the parts -----------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        fleet = self.fleet
        for server in fleet.servers:
            server.start()
        await fleet.start_proxies()
        fleet.engines[0].start()
        await _until(lambda: _is_ready(fleet.api_urls[0]), 60.0, "the first engine is ready")
        for member in (*fleet.engines[1:], *fleet.workers):
            member.start()
        await _until(lambda: _is_ready(fleet.api_urls[1]), 60.0, "the second engine is ready")
        async with Client(fleet.api_urls[0]) as client:
            await client.apply_definition({"name": TYPE, "schema": {"type": "object"}})
            await client.apply_definition({"name": "ci-build", "schema": {"type": "object"}})
            await client.apply_pipeline(PIPELINE)
            await client.apply_pipeline(BUILD_PIPELINE)
            if fleet.foreign is not None:
                await client.apply_pipeline(FOREIGN_PIPELINE)

            async def all_there() -> bool:
                drivers = await client.drivers()
                ours = sum(len(it.instances) for it in drivers)
                # A foreign one has no lease, only a name.
                return ours + sum(it.name == FOREIGN for it in drivers) == len(fleet.workers)

            await _until(all_there, 60.0, "all drivers are registered")

    async def _break_and_look(self) -> evidence.Evidence:
        settings, fleet = self.settings, self.fleet
        faults = Faults(fleet, random.Random(settings.seed), self.note)
        load = Load(
            fleet.api_urls,
            settings.seed,
            settings.resources,
            settings.builds,
            fleet.folder / "overlaps",
            poison=True,
            foreign=4 if fleet.foreign is not None else 0,
        )
        keeping_up = asyncio.create_task(faults.keep_up())
        working = asyncio.create_task(load.run())
        showing = asyncio.create_task(self._show(faults, load))
        try:
            await self._publish_garbage()
            await faults.run(settings.seconds)
            self.say(f"healing after {sum(faults.counts.values())} faults: {faults.counts}")
            await faults.heal()
            for text in faults.exits:
                self.say(text)
            load.stopping.set()
            await working
            unfinished, waited = await evidence.settled(fleet, PATIENCE, self.say)
            await load.close(60.0)
            left = await evidence.emptied(fleet, _JANITOR)
            found = await evidence.gather(fleet, load, unfinished, waited)
            found.left = left
            return found
        finally:
            await faults.heal()
            for task in (showing, keeping_up, working):
                await cancelled(task)

    async def _publish_garbage(self) -> None:
        """A dispatch that nobody can read: it becomes a dead letter and is in nobody's way."""
        bus = await Bus.connect(self.fleet.nats_url, name="garbage")
        try:
            await bus.publish(subjects.step_dispatch("chaos-first", TYPE), b"no JSON", msg_id="garbage")
        finally:
            await bus.close()

    async def _show(self, faults: Faults, load: Load) -> None:
        while True:
            await asyncio.sleep(15.0)
            ok = sum(op.outcome == "ok" for op in load.ops)
            self.say(f"{sum(faults.counts.values())} faults, {ok} of {len(load.ops)} requests answered 2xx")

    def _stop(self) -> dict[str, int | None]:
        """End everything in order, the servers last; the exit codes."""
        codes: dict[str, int | None] = {}
        for members in (self.fleet.workers, self.fleet.engines, self.fleet.servers):
            for member in members:
                member.wanted = False
                if member.lives:
                    member.thaw()
                    if member.alive:
                        member.terminate()
            for member in members:
                if member.lives and member.life.code is None:
                    codes[member.name] = member.wait()
        return codes


async def _is_ready(url: str) -> bool:
    with suppress(ClientError):
        async with Client(url) as client:
            return await client.ready()
    return False


async def _until(true: Callable[[], Awaitable[bool]], seconds: float, what: str) -> None:
    until = time.monotonic() + seconds
    while not await true():
        assert time.monotonic() < until, f"not within {seconds:.0f} s: {what}"
        await asyncio.sleep(0.1)
