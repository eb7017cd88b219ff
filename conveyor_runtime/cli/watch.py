"""A run as it happens: its log, what it waits for, and at its end a table of its steps."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING, TextIO

from conveyor_runtime.cli.errors import say
from conveyor_runtime.cli.output import Column, between, clean, colour, plain, print_table, status_colour

if TYPE_CHECKING:
    from conveyor_runtime.client import Client, LoggedLine, Run

__all__ = ["STEP_COLUMNS", "LinePrinter", "print_closing", "wait", "watch"]

STEP_COLUMNS = (
    Column("STEP", lambda it: it["id"]),
    Column("DRIVER", lambda it: it["driver"], spared=True),
    Column("STATUS", lambda it: it["status"]),
    Column("ATTEMPT", lambda it: str(it["attempt"]) if it["attempt"] else "-", spared=True),
    Column("DURATION", lambda it: between(it["started_at"], it["finished_at"]), spared=True),
    Column("MESSAGE", lambda it: it["message"]),
)

_COLOURS = ("36", "35", "34", "33", "32", "96", "95", "94")

#: Seconds between two looks at what a run waits for.
_LOOK = 1.0


class LinePrinter:
    """Prints log lines behind the step they are of, each step in a colour of its own on a terminal."""

    def __init__(
        self, file: TextIO, *, steps: tuple[str, ...] = (), prefix: bool = True, timestamps: bool = False
    ) -> None:
        self._file = file
        self._terminal = file.isatty()
        self._prefix = prefix
        self._timestamps = timestamps
        self._colours: dict[str, str] = {}
        self._prefixes: dict[str, str] = {}
        self._attempts: dict[str, tuple[int, int]] = {}
        self._width = max((len(step) for step in steps), default=0)
        for step in steps:
            self._colour(step)

    def print(self, line: LoggedLine) -> None:
        """Print one line, at once; before the first of another attempt or takeover of its step, one that says so."""
        self.print_all((line,))

    def print_all(self, lines: Iterable[LoggedLine]) -> None:
        """Print several at once."""
        self._file.write("".join(text for line in lines for text in self._texts(line)))
        self._file.flush()

    def _texts(self, line: LoggedLine) -> Iterator[str]:
        if line.attempt:
            attempt = (line.attempt, line.takeover)
            if attempt != self._attempts.get(line.step, (1, 0)):
                yield self._text(line, _beginning(*attempt))
            self._attempts[line.step] = attempt
        yield self._text(line, clean(line.message, keep_colour=self._terminal))

    def _text(self, line: LoggedLine, text: str) -> str:
        if self._timestamps:
            at = line.at
            text = f"{at.isoformat(timespec='milliseconds') if at else '-'} {text}"
        if self._prefix:
            text = f"{self._prefix_of(line.step or line.driver)} {text}"
        return f"{text}\n"

    def _prefix_of(self, step: str) -> str:
        if step not in self._prefixes:
            shown = clean(step)
            if len(shown) > self._width:
                self._width = len(shown)
                self._prefixes.clear()
            coloured = colour(f"[{shown}]", self._colour(shown), self._file)
            self._prefixes[step] = f"{coloured}{' ' * (self._width - len(shown))}"
        return self._prefixes[step]

    def _colour(self, step: str) -> str:
        return self._colours.setdefault(step, _COLOURS[len(self._colours) % len(_COLOURS)])


def _beginning(attempt: int, takeover: int) -> str:
    return (
        f"-- attempt {attempt}, taken over by another worker ({takeover}) --"
        if takeover
        else f"-- attempt {attempt} --"
    )


async def watch(client: Client, run_id: str, file: TextIO, *, timestamps: bool = False) -> Run:
    """Print a run's log to `file`, from its beginning to the run's end, and return the run then."""
    run = await client.get_run(run_id)
    printer = LinePrinter(file, steps=tuple(step.id for step in run.steps), timestamps=timestamps)
    async with _telling_waits(client, run_id):
        async with contextlib.aclosing(client.follow_logs(run_id)) as lines:
            async for line in lines:
                printer.print(line)
        return await client.wait_run(run_id)


async def wait(client: Client, run_id: str) -> Run:
    """The run once it has ended; meanwhile it is said what it waits for."""
    async with _telling_waits(client, run_id):
        return await client.wait_run(run_id)


@contextlib.asynccontextmanager
async def _telling_waits(client: Client, run_id: str) -> AsyncIterator[None]:
    task = asyncio.create_task(_tell_waits(client, run_id))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _tell_waits(client: Client, run_id: str) -> None:
    """Say what the run waits for, once it has waited for it from one look to the next."""
    from conveyor_runtime.client import ClientError

    last = told = ""
    while True:
        await asyncio.sleep(_LOOK)
        try:
            run = await client.get_run(run_id)
        except ClientError:
            continue  # the follower of the log has it out with the server
        reason = "" if run.status.terminal else run.reason
        if reason == last and reason not in ("", told):
            told = reason
            say(f"{run.status.lower()}: {clean(reason)}")
        last = reason


def print_closing(run: Run, file: TextIO | None = None) -> None:
    """The steps of an ended run, and in one line how it ended."""
    file = file or sys.stdout
    print(file=file)
    print_table(STEP_COLUMNS, [plain(step) for step in run.steps], file)
    created = run.created_at.isoformat()
    took = between(created, run.finished_at.isoformat() if run.finished_at else None)
    reason = f": {clean(run.reason)}" if run.reason else ""
    print(f"\nrun {run.run_id}: {status_colour(run.status, file)} after {took}{reason}", file=file)
