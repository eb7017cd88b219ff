"""People at work: they post, change, cancel and delete through both APIs, and note what they were answered."""

from __future__ import annotations

import asyncio
import random
import shlex
import time
from collections.abc import Awaitable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from conveyor_runtime.client import (
    Applied,
    Client,
    ClientError,
    ConflictError,
    LoggedLine,
    NotFoundError,
    ResourceInfo,
    UnavailableError,
    UnreachableError,
)
from tests.chaos.fleet import FOREIGN
from tests.chaos.worker import TYPE

T = TypeVar("T")

PIPELINE = {
    "name": "chaos",
    "resource": TYPE,
    "steps": [
        {"id": "one", "driver": "chaos-first"},
        {"id": "two", "driver": "chaos-second", "timeout": 12},
    ],
    "finally": [{"id": "clean", "driver": "chaos-first"}],
}

#: The shipped sandbox drivers without a repository to clone.
BUILD_PIPELINE = {
    "name": "chaos-build",
    "resource": "ci-build",
    "steps": [{"id": "start", "driver": "container-start"}, {"id": "build", "driver": "builder"}],
    "finally": [{"id": "stop", "driver": "container-stop"}],
}

#: One step of a driver built on another SDK. It acknowledges before it works: what it dies over ends by its timeout.
FOREIGN_PIPELINE = {
    "name": "chaos-foreign",
    "resource": TYPE,
    "steps": [{"id": "one", "driver": "chaos-first"}, {"id": "afar", "driver": FOREIGN, "timeout": 8}],
    "finally": [{"id": "clean", "driver": "chaos-first"}],
}

#: A build that says so if another one of its run is under way.
_BUILD = """
touch begun
while read -r pid; do
  if [ "$pid" != $$ ] && grep -qz "^CONVEYOR_RUN_ID=$CONVEYOR_RUN_ID$" "/proc/$pid/environ" 2> /dev/null; then
    echo "$CONVEYOR_RUN_ID: $$ began beside $pid" >> OVERLAPS
  fi
done < begun
echo $$ >> begun
for i in 1 2 3 4; do echo tick $i; sleep 0.3; done
"""

#: Seconds a request may take.
_PATIENCE = 8.0

#: One of so many accepted runs has a follower on its log.
_FOLLOW_ONE_OF = 6


@dataclass
class Op:
    """One request: `outcome` is ok, refused (4xx), unanswered (nobody knows), or fault (5xx that is not 503).

    `spec` is what it would make of the resource: its number, 0 = gone, None = unchanged.
    """

    began: float
    type: str
    name: str
    verb: str
    spec: int | None = None
    ended: float = 0.0
    outcome: str = "unanswered"
    run_id: str = ""
    text: str = ""


@dataclass
class Followed:
    """What a follower of a run's log was handed; `error` if it did not see the end."""

    run_id: str
    lines: list[LoggedLine] = field(default_factory=list)
    error: str = ""


class Load:
    """`run` until `stop`; then `ops` and `followed` tell."""

    def __init__(
        self,
        api_urls: Sequence[str],
        seed: int,
        resources: int,
        builds: int,
        overlaps: Path,
        *,
        poison: bool,
        foreign: int,
    ) -> None:
        self.ops: list[Op] = []
        self.followed: list[Followed] = []
        self.stopping = asyncio.Event()
        self._urls = api_urls
        self._seed = seed
        names = [f"r{number}" for number in range(resources)]
        # The last ones have two writers each, who know nothing of each other.
        self.shared = set(names[-2:])
        self._writers = [(TYPE, name, "") for name in names] + [(TYPE, name, "again") for name in sorted(self.shared)]
        self._writers += [("ci-build", f"b{number}", "") for number in range(builds)]
        self._foreign = {f"g{number}" for number in range(foreign)}
        self._writers += [(TYPE, name, "") for name in sorted(self._foreign)]
        self._poison = poison
        self._overlaps = overlaps
        self._following: set[asyncio.Task[None]] = set()
        self._clients: list[Client] = []
        self._stack = AsyncExitStack()

    async def run(self) -> None:
        """Write until `stopping`; every request is answered or given up then."""
        self._clients = [await self._stack.enter_async_context(Client(url, timeout=_PATIENCE)) for url in self._urls]
        writers = [self._write(*writer) for writer in self._writers]
        await asyncio.gather(*writers, *([self._write_poison()] if self._poison else []))

    async def close(self, patience: float) -> None:
        """Let the followers see the end of their logs."""
        if self._following:
            _, late = await asyncio.wait(self._following, timeout=patience)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
        await self._stack.aclose()

    # -- one writer ----------------------------------------------------------------------------------------------

    async def _write(self, type_: str, name: str, who: str) -> None:
        rng = random.Random(f"{self._seed}.{name}.{who}")
        number = 0 if not who else 1_000_000
        last_run = ""
        while not self.stopping.is_set():
            number += 1
            client = rng.choice(self._clients)
            verb = rng.choices(("apply", "put", "cancel", "delete", "rerun", "same"), (40, 20, 14, 14, 5, 7))[0]
            body = self._resource(type_, name, number, rng)
            if verb in ("apply", "put"):
                call: Awaitable[Applied | ResourceInfo] = (
                    client.apply(body) if verb == "apply" else client.update(type_, name, body)
                )
                done = await self._ask(Op(time.monotonic(), type_, name, verb, number), call)
                last_run = (done and done.run_id) or last_run
            elif verb == "delete":
                await self._ask(Op(time.monotonic(), type_, name, verb, 0), client.delete_resource(type_, name))
            elif verb == "same":
                await self._repeat(type_, name, client)
            elif last_run:
                op = Op(time.monotonic(), type_, name, verb)
                await self._ask(op, client.cancel_run(last_run) if verb == "cancel" else client.rerun(last_run))
            with suppress(TimeoutError):
                # Slower where a run must come to its second step before it is superseded.
                async with asyncio.timeout(rng.uniform(0.1, 2.5) * (3 if name in self._foreign else 1)):
                    await self.stopping.wait()

    async def _repeat(self, type_: str, name: str, client: Client) -> None:
        """Apply what is there already: that makes nothing."""
        with suppress(ClientError):
            found = await client.get_resource(type_, name)
            body = {"resource": type_, "name": name, "pipeline": found.pipeline, "spec": found.spec}
            body["priority"] = found.priority
            await self._ask(Op(time.monotonic(), type_, name, "same", found.spec["number"]), client.apply(body))

    def _resource(self, type_: str, name: str, number: int, rng: random.Random) -> dict[str, Any]:
        if type_ == "ci-build":
            build = _BUILD.replace("OVERLAPS", shlex.quote(str(self._overlaps)))
            spec: dict[str, Any] = {"repository": "file:///none", "commands": [build], "number": number}
            return {"resource": type_, "name": name, "pipeline": "chaos-build", "spec": spec}
        steps = {step: _behaviour(step, rng) for step in ("one", "two", "clean", "chaos-first", "chaos-second")}
        pipeline = "chaos-foreign" if name in self._foreign else "chaos"
        spec, priority = {"number": number, "steps": steps}, rng.choices((0, 3, 9), (80, 10, 10))[0]
        return {"resource": type_, "name": name, "pipeline": pipeline, "spec": spec, "priority": priority}

    async def _write_poison(self) -> None:
        """One resource whose work ends every process that takes it."""
        spec = {"number": 1, "steps": {"one": {"poison": True}}}
        body = {"resource": TYPE, "name": "poison", "pipeline": "chaos", "spec": spec}
        while not self.stopping.is_set():
            if await self._ask(Op(time.monotonic(), TYPE, "poison", "apply", 1), self._clients[0].apply(body)):
                return
            await asyncio.sleep(1.0)

    async def _ask(self, op: Op, call: Awaitable[T]) -> T | None:
        self.ops.append(op)
        try:
            done = await call
        except (ConflictError, NotFoundError) as error:
            op.outcome, op.text = "refused", str(error)
            return None
        except (UnreachableError, UnavailableError) as error:
            op.text = str(error)
            return None
        except ClientError as error:
            op.outcome, op.text = "fault", f"{error.status} {error}"
            return None
        finally:
            op.ended = time.monotonic()
        op.outcome, op.run_id = "ok", getattr(done, "run_id", "")
        if op.run_id and op.verb != "cancel" and len(self.ops) % _FOLLOW_ONE_OF == 0:
            self._follow(op.run_id)
        return done

    def _follow(self, run_id: str) -> None:
        followed = Followed(run_id)
        self.followed.append(followed)
        task = asyncio.create_task(self._follow_to_end(followed))
        self._following.add(task)
        task.add_done_callback(self._following.discard)

    async def _follow_to_end(self, followed: Followed) -> None:
        """Follow, and come back where an API that was never met gets no patience."""
        followed.error = "it did not see the end"
        client = self._clients[len(self.followed) % 2]
        while followed.error:
            after = followed.lines[-1].id if followed.lines else 0
            try:
                async for line in client.follow_logs(followed.run_id, after=after, patience=200.0):
                    followed.lines.append(line)
                followed.error = ""
            except (UnreachableError, UnavailableError):
                await asyncio.sleep(0.5)
            except ClientError as error:
                followed.error = str(error)
                return


def _behaviour(step: str, rng: random.Random) -> dict[str, Any]:
    """What one step does, mostly nothing bad."""
    outcome = rng.choices(("ok", "retry:1", "retry:2", "fail"), (85, 8, 3, 4))[0]
    if step not in ("one", "two"):
        # What cleans up must succeed, or a delete never ends.
        outcome = rng.choices(("ok", "retry:1"), (95, 5))[0]
    sleep = rng.choices((0.0, rng.uniform(0.1, 1.0), rng.uniform(1.0, 3.0), rng.uniform(4.0, 9.0)), (30, 40, 20, 10))[0]
    behaviour: dict[str, Any] = {"sleep": sleep, "lines": rng.randint(1, 40), "outcome": outcome}
    if step == "two" and rng.random() < 0.03:
        behaviour["sleep"] = 16.0  # longer than its timeout
        behaviour["deaf"] = rng.choice((0.0, 20.0))
    return behaviour
