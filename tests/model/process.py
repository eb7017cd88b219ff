"""A process of the runtime in a loop of its own. Whatever it asks of the server waits until the world lets it happen,
so that every order of events is one that the test has chosen."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from conveyor_runtime.errors import BusUnavailable, ConveyorError
from tests.model.loop import VirtualLoop
from tests.model.server import Server

_ORDER = itertools.count()


def _always() -> bool:
    return True


@dataclass(eq=False)
class Op:
    """A request on its way. `answer` None = nobody waits for what comes of it (any more)."""

    process: Process
    what: str
    run: Callable[[], Any]
    when: Callable[[], bool] = _always
    answer: asyncio.Future[Any] | None = None
    writes: bool = True
    since: float = 0.0
    order: int = field(default_factory=lambda: next(_ORDER))


class Process:
    """`frozen` = it does nothing, though what it sent still arrives; `away` = cut off from the bus."""

    def __init__(self, server: Server, name: str) -> None:
        self.server = server
        self.clock = server.clock
        self.name = name
        self.loop = VirtualLoop(server.clock)
        self.frozen = self.away = self.dead = False
        self.connected_since: float | None = server.clock.now
        self.up = asyncio.Event()
        self.up.set()
        self.listeners: list[Callable[[bool], None]] = []
        self.hints: list[Callable[[Any], None]] = []
        self.on_hint: Callable[[], None] = lambda: None
        self.ops: list[Op] = []

    # -- its requests --------------------------------------------------------------------------------------------

    async def ask(
        self,
        what: str,
        run: Callable[[], Any],
        *,
        timeout: float | None = 10.0,
        when: Callable[[], bool] = _always,
        writes: bool = False,
    ) -> Any:
        """What comes of it. BusUnavailable after `timeout` seconds: a write may then still happen."""
        if self.dead:
            raise asyncio.CancelledError
        answer = self.loop.create_future()
        op = self._sent(Op(self, what, run, when, answer, writes))
        try:
            async with asyncio.timeout(timeout):
                return await answer
        except TimeoutError:
            raise BusUnavailable(f"no answer to {what}") from None
        finally:
            op.answer = None
            if not writes and op in self.ops:
                self.ops.remove(op)

    def tell(self, what: str, run: Callable[[], Any]) -> None:
        """Send what nobody waits for."""
        if not (self.dead or self.away):
            self._sent(Op(self, what, run))

    def _sent(self, op: Op) -> Op:
        op.since = self.clock.now
        self.ops.append(op)
        return op

    def ready(self) -> list[Op]:
        """What may happen next. Writes into the store arrive in the order in which they were sent."""
        if self.away:
            return []
        found, stored = [], False
        for op in self.ops:
            if op.what == "commit":
                if stored:
                    continue
                stored = True
            if op.when():
                found.append(op)
        return found

    def release(self, op: Op, *, answered: bool = True) -> None:
        """Let it happen. Not `answered`: the process learns only that it does not know."""
        self.ops.remove(op)
        try:
            result = op.run()
        except ConveyorError as error:
            self._answer(op, error if answered else BusUnavailable("the answer got lost"))
        else:
            self._answer(op, result if answered else BusUnavailable("the answer got lost"))
        self.settle()

    def lose(self, op: Op) -> None:
        """Let it never arrive."""
        self.ops.remove(op)
        self._answer(op, BusUnavailable("it got lost"))
        self.settle()

    @staticmethod
    def _answer(op: Op, result: Any) -> None:
        if op.answer is None or op.answer.done():
            return
        if isinstance(result, Exception):
            op.answer.set_exception(result)
        else:
            op.answer.set_result(result)

    # -- its life ------------------------------------------------------------------------------------------------

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task in it; it has done all it can before this returns."""
        task = self.loop.create_task(work)
        self.settle()
        return task

    def settle(self) -> None:
        """Let it do all it can."""
        if not (self.frozen or self.dead):
            self.loop.settle()

    def kill(self, arrive: int = 0) -> None:
        """`kill -9`, after the first `arrive` of what it had sent has arrived."""
        self.dead = True
        for op in [it for it in self.ready() if it.writes][:arrive]:
            self.ops.remove(op)
            try:
                op.run()
            except ConveyorError:
                continue
        self.ops.clear()
        self.loop.end()

    def cut(self) -> None:
        """From now on nothing arrives, and it knows."""
        self.away = True
        self.connected_since = None
        self.up.clear()
        for op in [it for it in self.ops if it.answer is None]:
            self.ops.remove(op)
        self._tell(up=False)

    def join(self) -> None:
        """Connected again."""
        self.away = False
        self.connected_since = self.clock.now
        self.up.set()
        self._tell(up=True)

    def _tell(self, *, up: bool) -> None:
        for listener in list(self.listeners):
            self.loop.call_soon(listener, up)
        self.settle()
