"""The commands about runs: `run`, `rerun`, `logs`, `cancel`."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from conveyor_runtime.cli import options
from conveyor_runtime.cli.connection import ask
from conveyor_runtime.cli.errors import CliError, ExitCode, exit_code_of, program, say
from conveyor_runtime.cli.noun import find_noun
from conveyor_runtime.cli.options import Format
from conveyor_runtime.cli.output import emit, plain
from conveyor_runtime.cli.resources import apply_document
from conveyor_runtime.cli.targets import RunName, RunTarget, find_run

if TYPE_CHECKING:
    from conveyor_runtime.cli.documents import Document
    from conveyor_runtime.client import Client, LoggedLine, Run

__all__ = ["cancel", "logs", "rerun", "run"]

Watch = Annotated[bool, typer.Option("--watch", "-w", help="Follow the log; the exit code tells how the run ended.")]
Timestamps = Annotated[bool, typer.Option("--timestamps", help="Begin each line with its time.")]


def run(
    ctx: typer.Context,
    file: options.File,
    watch: Watch = False,
    timestamps: Timestamps = False,
    output: options.Output = Format.TABLE,
    api_url: options.ApiUrl = None,
    token: options.Token = None,
) -> None:
    """Apply the resource of a file and have its run.

    Definitions and pipelines in the same file are applied first. A resource that is stored in just this form makes no
    new run: its last one is shown. With --watch, Ctrl-C leaves the run alone.

    \b
    Example: conveyor run -f ci-build.yaml --watch
    """
    from conveyor_runtime.cli.documents import read_documents

    documents = read_documents(file)
    resources = [it for it in documents if it.kind == "resource"]
    if len(resources) != 1:
        raise typer.BadParameter(
            f"{file} holds {len(resources)} resources, and a run is of one; use apply", param_hint="-f"
        )

    async def start(client: Client) -> str:
        for document in documents:
            if document.kind != "resource":
                await apply_document(client, document)
        return await _have_run(client, resources[0])

    _start(ctx, api_url, token, start, watch=watch, timestamps=timestamps, output=output)


def rerun(
    ctx: typer.Context,
    target: RunTarget,
    name: RunName = "",
    watch: Watch = False,
    timestamps: Timestamps = False,
    output: options.Output = Format.TABLE,
    api_url: options.ApiUrl = None,
    token: options.Token = None,
) -> None:
    """Run a run's resource once more, as it is now.

    The new run is for the same event, and waits for the one under way, if there is one.

    \b
    Examples: conveyor rerun ci-build/hello --watch
              conveyor rerun 0199a6c4-...
    """

    async def start(client: Client) -> str:
        run = await client.rerun(await find_run(client, target, name))
        say(f"{run.resource.resource}/{run.resource.name}: run {run.run_id}")
        return run.run_id

    _start(ctx, api_url, token, start, watch=watch, timestamps=timestamps, output=output)


def _start(
    ctx: typer.Context,
    api_url: str | None,
    token: str | None,
    start: Callable[[Client], Awaitable[str]],
    *,
    watch: bool,
    timestamps: bool,
    output: Format,
) -> None:
    """Show or watch the run that `start` began ("" = none), and exit as it ended."""
    started: list[str] = []

    async def question(client: Client) -> ExitCode:
        run_id = await start(client)
        if not run_id:
            return ExitCode.SUCCESS
        started.append(run_id)
        if not watch:
            _show(await client.get_run(run_id), output)
            say(f"follow it with: {program()} logs -f {run_id}")
            return ExitCode.SUCCESS
        return await _watch(client, run_id, output, timestamps=timestamps)

    try:
        raise typer.Exit(ask(ctx, api_url, token, question))
    except KeyboardInterrupt:
        if started and watch:
            say(f"\ndetached: run {started[0]} goes on")
            say(f"  follow it again:  {program()} logs -f {started[0]}")
            say(f"  cancel it:        {program()} cancel {started[0]}")
        raise typer.Exit(ExitCode.INTERRUPTED) from None


async def _have_run(client: Client, document: Document) -> str:
    """The run that applying the resource led to, else its latest; empty if it never had one."""
    applied = await apply_document(client, document)
    if applied["run"]:
        say(f"{document.title} {applied['outcome']}: run {applied['run']}")
        return str(applied["run"])
    info = await client.get_resource(document.value["resource"], document.value["name"])
    run_id = info.active_run or info.last_run or ""
    what = "is stored in just this form" if applied["outcome"] == "unchanged" else "has new metadata only"
    say(f"{document.title} {what}, so no new run was needed; this is its {'latest' if run_id else 'state'}")
    if run_id:
        say(f"  for another one: {program()} rerun {run_id}")
    return run_id


async def _watch(client: Client, run_id: str, output: Format, *, timestamps: bool) -> ExitCode:
    from conveyor_runtime.cli.watch import print_closing, watch

    # Data asked for in a machine's format has stdout for itself.
    talk = sys.stdout if output is Format.TABLE else sys.stderr
    ended = await watch(client, run_id, talk, timestamps=timestamps)
    print_closing(ended, talk)
    if output is not Format.TABLE:
        _show(ended, output)
    return exit_code_of(ended.status)


def _show(run: Run, output: Format) -> None:
    row = plain(run)
    emit(row, output, find_noun("run").columns, lambda it: f"run/{it['run_id']}")


def logs(
    ctx: typer.Context,
    target: RunTarget,
    name: RunName = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")] = False,
    timestamps: Timestamps = False,
    step: Annotated[str, typer.Option("--step", help="Only lines of this step, and without its name in front.")] = "",
    output: Annotated[
        Format, typer.Option("--output", "-o", help="table = text; json = one object a line.")
    ] = Format.TABLE,
    api_url: options.ApiUrl = None,
    token: options.Token = None,
) -> None:
    """Print the log of a run.

    \b
    Examples: conveyor logs -f ci-build/hello
              conveyor logs 0199a6c4-... --step build
    """
    if output not in (Format.TABLE, Format.JSON):
        raise typer.BadParameter("a log is printed as table (text) or json", param_hint="-o")

    async def question(client: Client) -> None:
        import contextlib

        from conveyor_runtime.cli.watch import LinePrinter

        run = await client.get_run(await find_run(client, target, name))
        steps = tuple(it.id for it in run.steps)
        if step and steps and step not in steps:
            raise CliError(f"run {run.run_id} has no step {step}", f"its steps are {', '.join(steps)}")
        printer = LinePrinter(sys.stdout, steps=steps, prefix=not step, timestamps=timestamps)

        def show(lines: Sequence[LoggedLine]) -> None:
            wanted = [line for line in lines if not step or line.step == step]
            if output is Format.JSON:
                sys.stdout.write("".join(f"{line.model_dump_json(by_alias=True)}\n" for line in wanted))
                sys.stdout.flush()
            else:
                printer.print_all(wanted)

        if follow:
            async with contextlib.aclosing(client.follow_logs(run.run_id)) as lines:
                async for line in lines:
                    show((line,))
            return
        async with contextlib.aclosing(client.log_pages(run.run_id)) as pages:
            async for page in pages:
                show(page)

    ask(ctx, api_url, token, question)


def cancel(
    ctx: typer.Context,
    target: RunTarget,
    name: RunName = "",
    reason: Annotated[str, typer.Option("--reason", help="Why; it is kept with the run.")] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Return once it has ended.")] = False,
    api_url: options.ApiUrl = None,
    token: options.Token = None,
) -> None:
    """Ask a run to end. What it started is stopped, and its `finally` steps still run.

    \b
    Example: conveyor cancel ci-build/hello --reason "wrong branch"
    """

    async def question(client: Client) -> Run:
        run = await client.cancel_run(await find_run(client, target, name), reason)
        if not wait:
            return run
        from conveyor_runtime.cli.watch import wait as wait_for

        return await wait_for(client, run.run_id)

    run = ask(ctx, api_url, token, question)
    if not run.status.terminal:
        print(f"run {run.run_id} is being cancelled")
    elif run.status == "Cancelled":
        print(f"run {run.run_id} is cancelled")
    else:
        print(f"run {run.run_id} had ended already: {run.status}")
