"""The queue, claim and run state machine, in plain Python: which change may follow which, and what must be true then.

It knows nothing of the runtime's code: it reads the keys as they are written, and is told what workers really do. A
change that none of its transitions explains is a fault of the runtime. Rules are those of the protocol; I1 to I8 are
the promises of ARCHITECTURE.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

from tests.model import steps
from tests.model.steps import Numbers, Record, Violation, ensure, step_of, terminal

#: Seconds of silence after which a worker may be taken for dead.
SILENCE = 45.0


@dataclass
class Lease:
    """What is really so of a process: `renewed` when its last renewal was stored, `lapses` when silences ended."""

    renewed: float
    over: bool = False
    lapses: list[float] = field(default_factory=list)


@dataclass
class Result:
    """A stored result. `honest` = whoever stored it could not be taken for dead: it must count."""

    honest: bool
    status: str
    retryable: bool
    counted: bool = False


class Model:
    """`wrote`, `started`, `stored` and `taken_in` are told what happened; each raises Violation if it must not."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.resources: dict[str, Record] = {}
        self.runs: dict[str, Record] = {}
        self.claims: dict[Numbers, Record] = {}
        self.claimed_at: dict[Numbers, float] = {}
        self.leases: dict[str, Lease] = {}
        self.results: dict[Numbers, Result] = {}
        self.started: set[Numbers] = set()
        self.dead: set[str] = set()
        self.owed: dict[str, float] = {}
        self.letters: set[Numbers] = set()
        self.deleted: dict[str, str] = {}
        self.answered: set[str] = set()

    # -- the store -----------------------------------------------------------------------------------------------

    def wrote(self, key: str, value: bytes | None) -> None:
        """A key changed."""
        kind, *parts = key.split(".")
        after = orjson.loads(value) if value is not None else None
        if kind == "run":
            self._run(parts[0], self.runs.get(parts[0]), after)
            _keep(self.runs, parts[0], after)
        elif kind == "resource" and parts[0] != "pipeline":
            self._resource(self.resources.get(key), after)
            _keep(self.resources, key, after)
        elif kind == "claim":
            numbers = (parts[0], parts[1], int(parts[2]), int(parts[3]))
            self._claim(numbers, self.claims.get(numbers), after)
            _keep(self.claims, numbers, after)
        elif kind == "instance" and after is not None:
            self._lease(parts[0], after)

    def _lease(self, instance: str, after: Record) -> None:
        lease = self.leases.setdefault(instance, Lease(self.now()))
        if after.get("ended") or after.get("gone"):
            ensure(
                after.get("ended") or instance in self.dead, f"{instance} is said to be gone, and it is not: {after}"
            )
            lease.over = True
        elif self.now() - lease.renewed > SILENCE:
            lease.lapses.append(self.now())
        lease.renewed = self.now()

    def _run(self, run_id: str, before: Record | None, after: Record | None) -> None:
        if before is None:
            assert after is not None
            for step in after.get("plan") or ():
                state = step_of(after, step["id"])
                ensure(state.attempt <= 1 and not state.takeover, f"run {run_id} is born with a past")
            return
        if after is None:
            ensure(run_id not in self.owed, f"I1: run {run_id} was accepted and is removed")
            return
        ensure(not terminal(before["status"]), f"run {run_id} had ended as {before['status']} and is written again")
        was, now = before.get("cancel"), after.get("cancel")
        ensure(was is None or was == now, f"rule 13: the cancel of run {run_id} is taken back")
        for planned in before.get("plan") or ():
            self._step(run_id, after, planned, step_of(before, planned["id"]), step_of(after, planned["id"]))
        wanted = steps.status_of(after)
        ensure(after["status"] == wanted, f"run {run_id} is {after['status']}, its steps make it {wanted}: {after}")

    def _step(self, run_id: str, run: Record, planned: Record, before: steps.StepNow, after: steps.StepNow) -> None:
        numbers = (run_id, planned["id"], before.attempt, before.takeover)
        claim, result = self.claims.get(numbers), self.results.get(numbers)
        how = steps.explain(run, planned, before, after)
        if how in ("nothing", "skip"):
            return
        if how in ("open", "retry", "issue"):
            if how == "open":
                ensure(self._is_active(run), f"I3: {planned['id']} of {run_id} is opened before its turn: {run}")
            return
        if how == "result":
            ensure(result is not None, f"I2: {numbers} has the result of nobody: {after}")
            assert result is not None
            kept = after.status == result.status or (after.status == "AwaitingRetry" and result.retryable)
            ensure(kept, f"I2: {numbers} is {after}, its result said {result}")
            result.counted = True
            return
        # Taken over, or ended by the engine's own word: only what nobody has, and no result speaks for.
        ensure(claim is not None, f"rule 8: {numbers} has no claim and is now {after}")
        assert claim is not None
        waits = result is not None and result.honest and not result.counted
        ensure(not waits, f"I2: {numbers} has a result, and is now {after} without it")
        if claim["instance"] == "engine":
            ensure(how == "end", f"rule 7: the engine's own claim of {numbers} is taken over")
            return
        given_up = claim.get("given_up") or claim.get("timed_out")
        ensure(
            claim.get("given_up") or self.lost(claim["instance"], self.claimed_at[numbers]),
            f"rule 8: {numbers} is taken from {claim}, who lives",
        )
        died = after.deaths - before.deaths
        ensure(died == 0 or not given_up, f"rule 8: {numbers} was given up, which is no death")
        if how == "end" and after.status == "Error":
            ensure(numbers in self.letters, f"I8: {numbers} ended as {after}, and there is no dead letter")

    def _claim(self, numbers: Numbers, before: Record | None, after: Record | None) -> None:
        ensure(after is not None, f"the claim {numbers} is removed")
        assert after is not None
        if before is not None:
            ensure(before["instance"] == after["instance"], f"rule 7: the claim {numbers} changes hands: {after}")
            return
        run_id, step, attempt, takeover = numbers
        run = self.runs.get(run_id)
        ensure(run is not None, f"rule 7: {numbers} is claimed, and there is no such run")
        assert run is not None
        state = step_of(run, step)
        current = state.status == "Pending" and (state.attempt, state.takeover) == (attempt, takeover)
        ensure(current and not terminal(run["status"]), f"rule 7: {numbers} is claimed, the step is {state}")
        ensure(self._is_active(run), f"I3: {numbers} is claimed, and it is not its turn")
        self.claimed_at[numbers] = self.now()

    def _resource(self, before: Record | None, after: Record | None) -> None:
        was, now = _entries(before), _entries(after)
        for run_id in was:
            run = self.runs.get(run_id)
            # One whose first write got lost was never accepted: after a minute it is given up.
            ended = run is None or terminal(run["status"])
            ensure(run_id in now or ended, f"I1: run {run_id} is owed no more, and it is {run and run['status']}")
        for run_id in now:
            self.owed.setdefault(run_id, self.now())
        if before is None or after is None:
            ensure(after is not None or (before is not None and self._may_go(before)), f"I3: it is removed: {before}")
            return
        if before.get("active") and after.get("active") != before["active"]:
            run = self.runs.get(before["active"]["run_id"])
            ensure(run is None or terminal(run["status"]), f"I3: {before['active']} is still at work: {after}")
        ensure(after["id"] == before["id"], f"a resource's id changes: {after}")
        ensure(after.get("generation", 1) >= before.get("generation", 1), f"a generation is taken back: {after}")
        if before.get("deleting"):
            ensure(after.get("deleting", False), f"rule 3: a delete is taken back: {after}")
            new = [entry for entry in _entry_list(after) if entry["run_id"] not in was]
            ensure(all(entry["event"] == "delete" for entry in new), f"rule 3: a delete is not the last: {after}")

    def _may_go(self, record: Record) -> bool:
        """Whether the record may be removed: its delete has succeeded, or needs nobody."""
        ended = [self.runs.get(run_id) for run_id in _entries(record)]
        if not all(run is None or terminal(run["status"]) for run in ended):
            return False
        deletes = [run for run in ended if run is not None and run["event"] == "delete"]
        return not ended or any(run["status"] == "Succeeded" for run in deletes)

    # -- workers -------------------------------------------------------------------------------------------------

    def begin(self, instance: str, numbers: Numbers, resource_id: str, event: str) -> None:
        """User code is called."""
        claim = self.claims.get(numbers)
        ensure(claim is not None and claim["instance"] == instance, f"rule 7: {numbers} begins; its claim is {claim}")
        ensure(numbers not in self.started, f"I2: {numbers} begins twice")
        self.started.add(numbers)
        over = self.deleted.get(resource_id)
        ensure(over in (None, numbers[0]) or event == "delete", f"I3: {numbers} begins after the delete {over}")
        if event == "delete":
            self.deleted[resource_id] = numbers[0]

    def stored(self, numbers: Numbers, instance: str, status: str, retryable: bool) -> None:
        """A result is in its stream."""
        if numbers in self.results:
            return  # the same once more
        claim = self.claims.get(numbers)
        ensure(claim is not None and claim["instance"] == instance, f"rule 9: {instance} reports {numbers}: {claim}")
        assert claim is not None
        honest = not claim.get("given_up") and not self.lost(instance, self.claimed_at[numbers], dead=False)
        self.results[numbers] = Result(honest, status, retryable)

    def taken_in(self, numbers: Numbers) -> None:
        """A result is acknowledged."""
        result = self.results[numbers]
        ensure(result.counted or not result.honest, f"I2: the result of {numbers} is dropped: {result}")

    def lost(self, instance: str, since: float, *, dead: bool = True) -> bool:
        """Whether this process could be taken for dead at some time from `since` until now."""
        lease = self.leases[instance]
        silent = self.now() - lease.renewed > SILENCE or any(at >= since for at in lease.lapses)
        return lease.over or silent or (dead and instance in self.dead)

    def _is_active(self, run: Record) -> bool:
        record = self.resources.get(f"resource.{run['type']}.{run['name']}")
        active = record.get("active") if record else None
        return active is not None and active["run_id"] == run["run_id"]

    # -- the end -------------------------------------------------------------------------------------------------

    def ended(self) -> None:
        """Everything was whole for long enough."""
        for run_id, run in self.runs.items():
            ensure(terminal(run["status"]), f"I1: run {run_id} does not end: {run}")
            self._cleaned(run_id, run)
        for key, record in self.resources.items():
            ensure(not self.owes(record), f"I1: {key} still owes something: {record}")
        for numbers, result in self.results.items():
            ensure(result.counted or not result.honest, f"I2: the result of {numbers} never counted")
        for run_id in self.owed:
            if run_id not in self.runs:
                ensure(run_id not in self.answered, f"I1: run {run_id} was answered, and is not there")

    def owes(self, record: Record) -> bool:
        """Whether something is still to be done for a resource. A delete that failed waits for the next one."""
        last = self.runs.get(record.get("last_run", ""))
        failed = last is not None and last["event"] == "delete"
        return bool(_entries(record)) or (record.get("deleting", False) and not failed)

    def _cleaned(self, run_id: str, run: Record) -> None:
        """I7: where a worker had begun, `finally` steps were worked on."""
        if not any(it[0] == run_id and claim["instance"] != "engine" for it, claim in self.claims.items()):
            return
        for planned in run.get("plan") or ():
            state = step_of(run, planned["id"])
            worked_on = state.instance is not None or state.deaths >= steps.MAX_DEATHS
            ensure(worked_on or not planned.get("finally"), f"I7: {planned['id']} of {run_id} was not worked on: {run}")


def _keep(records: dict[Any, Record], key: Any, after: Record | None) -> None:
    if after is None:
        records.pop(key, None)
    else:
        records[key] = after


def _entry_list(record: Record | None) -> list[Record]:
    if record is None:
        return []
    return [*([record["active"]] if record.get("active") else []), *record.get("queue", ())]


def _entries(record: Record | None) -> list[str]:
    return [entry["run_id"] for entry in _entry_list(record)]


__all__ = ["Model", "Violation"]
