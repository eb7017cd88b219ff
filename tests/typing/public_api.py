"""What users write, as the type checker sees it. Never run: mypy reads it."""

from __future__ import annotations

from typing import Any, assert_type

from pydantic import BaseModel

from conveyor_runtime import (
    Driver,
    DriverLogger,
    DriverResult,
    Resource,
    RetryableError,
    RunContext,
    TaskFailed,
    TerminalError,
    driver,
)


class Spec(BaseModel):
    url: str


@driver("typed", "my-type", events="*")
async def typed(
    payload: Resource[Spec], event: str, run_id: str, logger: DriverLogger, context: RunContext
) -> DriverResult:
    assert_type(payload.spec, Spec)
    assert_type(payload.spec.url, str)
    assert_type(payload.metadata, dict[str, str])
    assert_type(context.deadline, float | None)
    logger.info("works", url=payload.spec.url)
    await logger.line("output", stream="stderr")
    print("text", file=logger.stream())
    return DriverResult(success=True, data={"any": ["json"]}, requeue_after=5)


def plain(payload: str, event: str, run_id: str, logger: DriverLogger) -> None:
    if not payload:
        raise TerminalError("empty", exit_code=2)
    raise TaskFailed("no", exit_code=1, data={"a": 1}) if event == "create" else RetryableError("later")


assert_type(typed, Driver)
assert_type(Driver("plain", ("my-type",), plain, events=("create",)).name, str)


def untyped(payload: Resource) -> dict[str, Any]:
    assert_type(payload, Resource[dict[str, Any]])
    assert_type(payload.spec, dict[str, Any])
    return payload.spec
