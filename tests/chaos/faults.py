"""One fault a second, drawn from the seed; whatever died is started again, whatever was bent is straightened."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from tests.chaos import journal
from tests.chaos.fleet import Fleet, Member, Span
from tests.chaos.worker import POISONED

#: Seconds of a freeze that outlasts the self-fence of a worker (25 s), and of one that outlasts its lease (45 s).
_FENCED, _DEAD = 30.0, 60.0

#: Seconds a process gets before it is killed again: one that is still starting has nothing in hand.
_UP = 6.0


class Faults:
    """`run` until `stop`; `heal` makes everything whole again."""

    def __init__(self, fleet: Fleet, rng: random.Random, say: Callable[[str], None]) -> None:
        self._fleet = fleet
        self._rng = rng
        self._say = say
        self._under_way: set[asyncio.Task[None]] = set()
        self._long: set[Member] = set()
        self._dying = False
        self.counts: dict[str, int] = {}
        self.exits: list[str] = []

    async def keep_up(self) -> None:
        """Start again whatever ended, for ever."""
        while True:
            for member in self._fleet.members:
                if member.wanted and not member.alive:
                    # A foreign one gives up without the bus, as Conveyor's do.
                    if member.life.code not in (None, -9, POISONED) and member is not self._fleet.foreign:
                        self.exits.append(
                            f"{member.name} ended by itself with {member.life.code}: {_last_line(member)}"
                        )
                        self._say(self.exits[-1])
                    member.start()
            await asyncio.sleep(0.2)

    async def run(self, seconds: float, every: float = 1.0) -> None:
        """A fault every so often."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            kinds: dict[str, tuple[int, Callable[[float], Coroutine[Any, Any, None] | None]]] = {
                "kill a worker": (18, lambda left: self._kill(self._fleet.workers)),
                "kill an engine": (7, lambda left: self._kill(self._watchers)),
                "freeze": (14, lambda left: self._freeze(self._rng.uniform(0.3, 6.0))),
                "freeze long": (10, lambda left: self._freeze_long(left)),
                "cut": (12, lambda left: self._cut()),
                "half-open": (14, lambda left: self._bend("swallow", left)),
                "hold": (10, lambda left: self._bend("hold", left)),
                "delay": (8, lambda left: self._bend("delay", left)),
                "refuse": (4, lambda left: self._bend("refuse", left)),
                "kill nats": (4, lambda left: self._outage(kill=True)),
                "freeze nats": (2, lambda left: self._outage(kill=False)),
            }
            for _ in range(20):
                name = self._rng.choices(list(kinds), [weight for weight, _ in kinds.values()])[0]
                fault = kinds[name][1](until - time.monotonic())
                if fault is not None:
                    self.counts[name] = self.counts.get(name, 0) + 1
                    task = asyncio.create_task(fault)
                    self._under_way.add(task)
                    task.add_done_callback(self._under_way.discard)
                    break
            await asyncio.sleep(every)

    async def heal(self) -> None:
        """End every fault that is under way."""
        for task in self._under_way:
            task.cancel()
        if self._under_way:
            await asyncio.wait(self._under_way)
        for member in self._fleet.members:
            member.thaw()
            if member.proxy is not None:
                member.proxy.heal()
            for span in member.trouble:
                span.end = span.end or time.monotonic()
        for outage in self._fleet.outages:
            outage.end = outage.end or time.monotonic()

    @property
    def _watchers(self) -> list[Member]:
        """The engines that may be broken: none while a worker is frozen for so long that they must find it dead, which
        takes them 45 s of their own undisturbed watching."""
        return [] if self._dying else self._fleet.engines

    # -- processes -----------------------------------------------------------------------------------------------

    def _kill(self, members: list[Member]) -> Coroutine[Any, Any, None] | None:
        member = self._pick(members)
        if member is None or time.monotonic() - member.life.began < _UP:
            return None

        async def kill() -> None:
            if member.alive:
                self._say(f"kill -9 {member.name}")
                member.kill()

        return kill()

    def _freeze(self, seconds: float) -> Coroutine[Any, Any, None] | None:
        member = self._pick([*self._watchers, *self._fleet.workers])
        return self._frozen(member, seconds) if member else None

    def _freeze_long(self, left: float) -> Coroutine[Any, Any, None] | None:
        """A worker in the middle of its work; never so late that the end would wait for it, and never both of a
        kind."""
        pids = journal.at_work(self._fleet.journal)
        busy = [it for it in self._fleet.workers if it.life.pid in pids]
        seconds = _DEAD if busy and left > _DEAD else _FENCED
        member = self._pick(busy or [*self._watchers])
        if member is None or seconds > left or self._dying or any(_kind(it) == _kind(member) for it in self._long):
            return None
        return self._frozen(member, seconds, long=True)

    async def _frozen(self, member: Member, seconds: float, *, long: bool = False) -> None:
        self._say(f"freeze {member.name} for {seconds:.1f} s")
        member.freeze()
        if long:
            self._long.add(member)
        self._dying = self._dying or seconds == _DEAD
        try:
            await asyncio.sleep(seconds)
        finally:
            member.thaw()
            self._long.discard(member)
            if seconds == _DEAD:
                self._dying = False

    def _pick(self, members: list[Member]) -> Member | None:
        """Any, if it is not under another fault."""
        if not members:
            return None
        member = self._rng.choice(members)
        return member if member.alive and not member.frozen and not _is_bent(member) else None

    # -- connections ---------------------------------------------------------------------------------------------

    async def _cut(self) -> None:
        member = self._rng.choice([*self._watchers, *self._fleet.workers])
        self._say(f"cut the connection of {member.name}")
        member.trouble.append(Span("cut", time.monotonic(), time.monotonic()))
        assert member.proxy is not None
        member.proxy.cut()

    def _bend(self, how: str, left: float) -> Coroutine[Any, Any, None] | None:
        member = self._pick([*self._watchers, *self._fleet.workers])
        ways = self._rng.choice((("up",), ("down",), ("up", "down")))
        seconds = self._rng.choices((self._rng.uniform(0.5, 8.0), self._rng.uniform(8.0, 55.0)), (85, 15))[0]
        delay = self._rng.uniform(0.005, 0.2)
        if member is None or (seconds > 8.0 and (seconds > left or _kind(member) in map(_kind, self._long))):
            return None
        return self._bent(member, how, ways, seconds, delay)

    async def _bent(self, member: Member, how: str, ways: Any, seconds: float, delay: float) -> None:
        proxy = member.proxy
        assert proxy is not None
        self._say(f"{how} {'+'.join(ways)} of {member.name} for {seconds:.1f} s")
        span = Span(how, time.monotonic())
        member.trouble.append(span)
        if seconds > 8.0:
            self._long.add(member)
        if how == "swallow":
            proxy.swallow(*ways)
        elif how == "hold":
            proxy.hold(*ways)
        elif how == "delay":
            proxy.delay = delay
        else:
            proxy.refuse = True
            proxy.cut()
        try:
            await asyncio.sleep(seconds)
        finally:
            proxy.heal()
            span.end = time.monotonic()
            self._long.discard(member)

    # -- NATS ----------------------------------------------------------------------------------------------------

    def _outage(self, *, kill: bool) -> Coroutine[Any, Any, None] | None:
        server = self._rng.choice(self._fleet.servers)
        seconds = self._rng.uniform(0.1, 4.0)
        if not self._watchers or any(not it.alive or not it.wanted or it.frozen for it in self._fleet.servers):
            return None
        return self._killed(server, seconds) if kill else self._frozen_server(server, seconds)

    async def _killed(self, server: Member, seconds: float) -> None:
        self._say(f"kill -9 {server.name}, back in {seconds:.1f} s")
        span = Span("killed", time.monotonic())
        self._fleet.outages.append(span)
        server.wanted = False
        server.kill()
        try:
            await asyncio.sleep(seconds)
        finally:
            server.wanted = True
            span.end = time.monotonic() + 1.0

    async def _frozen_server(self, server: Member, seconds: float) -> None:
        self._say(f"freeze {server.name} for {seconds:.1f} s")
        span = Span("frozen", time.monotonic())
        self._fleet.outages.append(span)
        server.freeze()
        try:
            await asyncio.sleep(seconds)
        finally:
            server.thaw()
            span.end = time.monotonic()


def _last_line(member: Member) -> str:
    lines = member.log.read_text(errors="replace").splitlines()
    return lines[-1][:200] if lines else ""


def _kind(member: Member) -> str:
    return member.name.rstrip("0123456789-")


def _is_bent(member: Member) -> bool:
    return any(span.end is None for span in member.trouble)


async def cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel a task and see its end."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
