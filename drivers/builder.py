"""builder: run the resource's commands in the sandbox, with their output as it comes."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time

from conveyor_runtime.errors import Gone, TaskFailed, TaskTimedOut, TerminalError
from conveyor_runtime.kit.lines import LineSplitter
from conveyor_runtime.models import DriverResult, Resource
from conveyor_runtime.orchestra import ExitStatus, Sandbox, Stream
from conveyor_runtime.reconcile import Driver, DriverLogger, RunContext
from drivers.sandboxes import enter, tag_of
from drivers.spec import TYPES, BuildSpec, backend_of

_SHOWN = 120  # characters of a command in a message


async def reconcile(
    payload: Resource[BuildSpec], event: str, run_id: str, logger: DriverLogger, context: RunContext
) -> DriverResult:
    """Run the commands one after the other; the first that fails fails the build."""
    spec = payload.spec
    if not spec.commands:
        raise TerminalError(f"there is nothing to build: set spec.commands, or a default for {payload.resource}")
    sandbox = await enter(payload, context)
    env = {
        "CI": "true",
        "CONVEYOR_RUN_ID": run_id,
        "CONVEYOR_RESOURCE": payload.name,
        "CONVEYOR_EVENT": event,
        **spec.env,
    }
    started = time.monotonic()
    for number, command in enumerate(spec.commands, 1):
        left = None if spec.timeout is None else started + spec.timeout - time.monotonic()
        which = f"command {number} of {len(spec.commands)}"
        if left is not None and left <= 0:
            raise _timed_out(which, command, spec)
        for prompt, line in zip("$" + ">" * len(command), command.splitlines(), strict=False):
            logger.info(f"{prompt} {line}")
        context.ensure_current()
        status = await _run(sandbox, command, env, spec.workdir, left, logger, context)
        if status.status == "timeout":
            raise _timed_out(which, command, spec)
        if status.status != "success":
            raise TaskFailed(f"{which} {_how(status)}: {_shown(command)}", exit_code=status.exit_code)
    seconds = round(time.monotonic() - started, 3)
    count = "1 command" if len(spec.commands) == 1 else f"{len(spec.commands)} commands"
    return DriverResult(
        success=True,
        message=f"{count} succeeded in {seconds:.1f} s",
        data={"commands": len(spec.commands), "exitCode": 0, "seconds": seconds},
    )


async def _run(
    sandbox: Sandbox,
    command: str,
    env: dict[str, str],
    workdir: str,
    timeout: float | None,
    logger: DriverLogger,
    context: RunContext,
) -> ExitStatus:
    lines: dict[Stream, LineSplitter] = {"stdout": LineSplitter(), "stderr": LineSplitter()}

    async def take(stream: Stream, data: bytes) -> None:
        for line in lines[stream].feed(data):
            await logger.line(line, stream=stream)

    async def rest() -> None:
        for stream, splitter in lines.items():
            for line in splitter.flush():
                await logger.line(line, stream=stream)

    try:
        status = await sandbox.exec(
            ["sh", "-c", command],
            env=env,
            workdir=workdir,
            timeout=timeout,
            grace=context.settings.kill_grace,
            on_output=take,
            tag=tag_of(context),
        )
    except Gone as error:
        await rest()
        raise TerminalError(f"the sandbox went away during the build: {error}") from error
    except asyncio.CancelledError:
        # The last words of a build that is being stopped, if the log still takes them at once.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await rest()
        raise
    await rest()
    return status


def _how(status: ExitStatus) -> str:
    if status.reason == "oom":
        return f"ran out of memory (exit code {status.exit_code})"
    if status.status == "killed":
        number = status.exit_code - 128
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        return f"was killed by {name} (exit code {status.exit_code})"
    return f"failed with exit code {status.exit_code}"


def _timed_out(which: str, command: str, spec: BuildSpec) -> TaskTimedOut:
    return TaskTimedOut(f"the build exceeded its timeout, in {which}, after {spec.timeout:g} s: {_shown(command)}")


def _shown(command: str) -> str:
    first, *more = command.strip().splitlines() or [""]
    return f"{first[:_SHOWN]}..." if more or len(first) > _SHOWN else first


driver = Driver(name="builder", resources=TYPES, reconcile=reconcile, sandbox=True, direct=False, backend_of=backend_of)
