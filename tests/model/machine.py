"""What clients, workers, engines and fate may do, in any order hypothesis thinks of."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from conveyor_runtime.engine import Draft
from tests.model.loop import Clock
from tests.model.process import Process
from tests.model.processes import TYPE, EngineProcess, Request, WorkerProcess
from tests.model.server import Server
from tests.model.world import World

NAMES = st.sampled_from(["a", "b"])
PICK = st.integers(0, 30)
ENDS = st.sampled_from(["ok", "ok", "fail", "again", "requeue"])
VERBS = st.sampled_from(["apply", "post", "delete", "force"])


class Machine(RuleBasedStateMachine):
    """`server` says what the world stands on. Whatever was done, all of it ends once nothing is broken any more."""

    server: ClassVar[Any] = Server

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self._make_server)
        self.world.quiet()
        self.changes = 0

    def _make_server(self, clock: Clock) -> Server:
        made: Server = type(self).server(clock)
        return made

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:
                self.world.drain()
        finally:
            self.world.close()

    @invariant()
    def holds(self) -> None:
        """The model looked at every change as it was made; this is for what came out of turn."""
        self.world.check()

    # -- clients -------------------------------------------------------------------------------------------------

    def _engine(self, pick: int) -> EngineProcess | None:
        """One that can be reached."""
        engines = [it for it in self.world.engines if it is not None and not (it.frozen or it.away)]
        return engines[pick % len(engines)] if engines else None

    @initialize(names=st.lists(NAMES, max_size=2))
    def begin(self, names: list[str]) -> None:
        for name in names:
            self.request("apply", name, 0)
        self.world.quiet()

    @rule(verb=VERBS, name=NAMES, pick=PICK)
    def request(self, verb: str, name: str, pick: int) -> None:
        engine = self._engine(pick)
        if engine is None:
            return
        self.changes += 1
        draft = Draft(TYPE, name, {"n": self.changes}, "p")
        calls: dict[str, Callable[[], Any]] = {
            "post": lambda: engine.intake.create(draft),
            "apply": lambda: engine.intake.update(draft, create_missing=True),
            "delete": lambda: engine.intake.delete(TYPE, name),
            "force": lambda: engine.intake.delete(TYPE, name, force=True),
        }
        self.world.ask(engine, Request(verb, name), calls[verb]())

    @precondition(lambda self: self.world.model.owed)
    @rule(run=PICK, pick=PICK)
    def cancel(self, run: int, pick: int) -> None:
        owed, engine = list(self.world.model.owed), self._engine(pick)
        if engine is not None:
            work = engine.intake.cancel(owed[-1 - run % len(owed)], who="me", why="enough")
            self.world.ask(engine, Request("cancel", ""), work)

    # -- the course of things ------------------------------------------------------------------------------------

    @rule(picks=st.lists(PICK, min_size=1, max_size=25))
    def step(self, picks: list[int]) -> None:
        """Some of the things that may happen do, in this order."""
        for pick in picks:
            if ready := self.world.ready():
                self.world.release(ready[pick % len(ready)])

    @rule(ends=st.lists(ENDS, max_size=4))
    def go_on(self, ends: list[str]) -> None:
        """All that may happen does, and some of the work is done."""
        self.world.quiet()
        for how in ends:
            if jobs := self.world.jobs():
                jobs[0].end(how)
                self.world.quiet()

    @precondition(lambda self: self.world.jobs())
    @rule(pick=PICK, how=ENDS)
    def finish(self, pick: int, how: str) -> None:
        """User code returns; what follows is still to happen."""
        jobs = self.world.jobs()
        jobs[pick % len(jobs)].end(how)

    @rule(seconds=st.sampled_from([0.5, 2.0, 7.0, 31.0, 50.0, 70.0]), busy=st.booleans())
    def advance(self, seconds: float, busy: bool) -> None:
        self.world.advance(seconds if busy else min(seconds, 7.0), busy=busy)

    @rule(pick=PICK)
    def sweep(self, pick: int) -> None:
        engine = self._engine(pick)
        if engine is not None:
            engine.look_around()

    # -- fate ----------------------------------------------------------------------------------------------------

    def _victim(self, pick: int) -> Process | None:
        """Workers at work before those that are idle."""
        processes = self.world.processes
        workers = [it for it in processes if isinstance(it, WorkerProcess)]
        likely = [it for it in workers if it.jobs] * 3 + processes
        return likely[pick % len(likely)] if likely else None

    @rule(how=st.sampled_from(["kill", "drain", "freeze", "cut"]), pick=PICK, arrive=st.integers(0, 3))
    def hurt(self, how: str, pick: int, arrive: int) -> None:
        process = self._victim(pick)
        if process is None or (process.frozen and how != "kill"):
            return
        if how == "kill":
            self.world.kill(process, arrive)
        elif how == "freeze":
            process.frozen = True
        elif how == "cut" and not process.away:
            process.cut()
        elif isinstance(process, WorkerProcess):
            process.drain()
        self.world.check()

    @rule(times=st.sampled_from([1, 2, 6]), dies=st.booleans())
    def doom(self, times: int, dies: bool) -> None:
        """Whoever takes a certain step dies of it, or fails at it, so many times."""
        numbers = None
        for _ in range(30):
            self.world.bring_up()
            self.world.quiet()
            jobs = [job for job in self.world.jobs() if numbers is None or job.numbers[:2] == numbers[:2]]
            if jobs:
                numbers = jobs[0].numbers
                if dies:
                    self.world.kill(jobs[0].worker)
                else:
                    jobs[0].end("again")
                times -= 1
            if numbers is None or not times:
                return
            self.world.advance(10.0)

    @rule(pick=PICK, seconds=st.sampled_from([20.0, 50.0, 70.0]))
    def stun(self, pick: int, seconds: float) -> None:
        """A process stands still for so long, while the others go on, and finds itself back."""
        process = self._victim(pick)
        if process is not None and not process.frozen:
            process.frozen = True
            self.world.advance(seconds)
            process.frozen = False
            process.settle()
        self.world.check()

    @rule(how=st.sampled_from(["start", "thaw", "join"]))
    def mend(self, how: str) -> None:
        if how == "start":
            self.world.bring_up()
        for process in self.world.processes:
            if how == "thaw" and process.frozen:
                process.frozen = False
                process.settle()
            elif how == "join" and process.away and not process.frozen:
                process.join()
        self.world.check()

    @rule(pick=PICK, arrives=st.booleans())
    def lose(self, pick: int, arrives: bool) -> None:
        """A request gets lost, or its answer does."""
        found = [op for op in self.world.ready() if op.writes]
        if not found:
            return
        op = found[pick % len(found)]
        if arrives:
            self.world.release(op, answered=False)
        else:
            op.process.lose(op)
        self.world.check()

    @rule(wait=st.booleans())
    def results(self, wait: bool) -> None:
        """The engines are slow in taking results in, or up to date."""
        self.world.results_wait = wait

    @rule(what=st.sampled_from(["delivery", "result", "dispatch"]), pick=PICK)
    def repeat(self, what: str, pick: int) -> None:
        """A message is handed out again although somebody is at it; a result or a dispatch comes once more."""
        out = [it for consumer in self.world.server.consumers.values() for it in consumer.out.values()]
        if what == "result":
            self.world.copy_result(pick)
        elif what == "dispatch":
            self.world.copy_dispatch(pick)
        elif out:
            self.world.server.nak(out[pick % len(out)])
