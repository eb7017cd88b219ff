"""Puts what became a dead letter back in play, once somebody has mended what was in its way.

Doing it twice does once: a step has another attempt only while its last is the letter's, a resource another run only
while its last is the letter's, and what is published again bears the letter's id. The letter is removed last.
"""

from __future__ import annotations

from conveyor_runtime.bus import Bus
from conveyor_runtime.engine import planner
from conveyor_runtime.engine.engine import Engine
from conveyor_runtime.engine.intake import Intake
from conveyor_runtime.errors import Conflict, NotFound
from conveyor_runtime.models import RunRecord
from conveyor_runtime.models.letter import DeadLetter, Redriven
from conveyor_runtime.store.letters import Letter, Letters


class Redrive:
    """Redrives dead letters."""

    def __init__(self, engine: Engine, intake: Intake, bus: Bus) -> None:
        self._engine = engine
        self._transitions = engine.transitions
        self._intake = intake
        self._bus = bus
        self._letters = Letters(bus)

    async def redrive(self, letter_id: int) -> Redriven:
        """Redrive one letter and remove it. Raises NotFound, and Conflict where it is not the time for it.

        A dispatch that names a step of a run gets that step another attempt, or the run's resource another run if the
        run has ended; everything else is published again to where it came from.
        """
        letter = await self._letters.get(letter_id)
        if letter is None:
            raise NotFound(f"there is no dead letter {letter_id}")
        about = letter.about
        if about.kind == "dispatch" and about.run_id and about.attempt:
            done = await self._step(about)
        else:
            done = await self._publish(letter)
        await self._letters.remove(letter_id)
        return done

    async def _step(self, about: DeadLetter) -> Redriven:
        found = await self._engine.state.run(about.run_id)
        if found is None:
            raise NotFound(f"run {about.run_id}, which it is of, is gone; apply its resource again")
        if found.record.status.terminal:
            run_id = await self._again(found.record)
            return Redriven(id=about.id, action="rerun", run_id=run_id)
        now = self._transitions.now()
        run = await self._transitions.change(
            about.run_id, lambda record: planner.reopen(record, about.step, about.attempt, now)
        )
        if run is None or run.state(about.step).attempt <= about.attempt:
            raise Conflict(f"run {about.run_id} is still ending; redrive it once it has ended")
        self._engine.look(about.run_id)
        return Redriven(id=about.id, action="reopened", run_id=about.run_id)

    async def _again(self, run: RunRecord) -> str:
        """The run that does the work of this ended one."""
        if run.event != "delete":
            return (await self._intake.rerun(run.run_id, only_the_last=True)).run_id
        resource = await self._engine.state.resource(run.type, run.name)
        if resource is None or resource.record.id != (await self._engine.state.run_input(run)).id:
            raise NotFound(f"{run.type}/{run.name}, which run {run.run_id} was to delete, is gone")
        return (await self._intake.delete(run.type, run.name)).run_id

    async def _publish(self, letter: Letter) -> Redriven:
        about = letter.about
        if about.cut:
            raise Conflict(f"dead letter {about.id} cannot be published again: it was too large to be kept whole")
        if not about.subject:
            raise Conflict(f"dead letter {about.id} does not tell where it came from")
        await self._bus.publish(about.subject, letter.data, msg_id=f"redrive.{about.id}", headers=letter.headers)
        return Redriven(id=about.id, action="published", run_id=about.run_id)
