"""The grammar of subjects and consumer names: pure, and the only place that spells them."""

from __future__ import annotations

import re

from conveyor_runtime.errors import InvalidInput

__all__ = [
    "ANY_CANCEL_HINT",
    "CONSUMERS",
    "KV",
    "RESULT",
    "RESULT_CONSUMER",
    "cancel_hint",
    "check_token",
    "dead_letter",
    "direct_event",
    "driver_consumer",
    "kv",
    "live_log",
    "log",
    "matches",
    "node_consumer",
    "node_dispatch",
    "overtake_hint",
    "step_dispatch",
]

ANY_CANCEL_HINT = "cv.hint.cancel.*"
"""Every hint that a run was cancelled, for a worker to listen to."""

CONSUMERS = "cvpy-"
"""How the durable consumers of our drivers begin; what begins otherwise is another SDK's."""

KV = "$KV.cv-state."
"""How the subjects of the state bucket begin; the key follows."""

RESULT = "pipelines.driver.result"
"""Where drivers of every SDK publish their results."""

RESULT_CONSUMER = "cv-engine"
"""The durable consumer by which all engines take results in."""

_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,128}")
_KEY = re.compile(r"[A-Za-z0-9_-]{1,128}(?:\.[A-Za-z0-9_-]{1,128})*")


def check_token(s: str, what: str) -> str:
    """Return `s` when it may stand in a subject; `what` names it in the error.

    Raises InvalidInput: a name with a dot, a space or a wildcard would address somebody else.
    """
    if _TOKEN.fullmatch(s) is None:
        raise InvalidInput(f"{what} {s[:140]!r} must be 1 to 128 of the characters A-Z a-z 0-9 _ -")
    return s


def step_dispatch(driver: str, type: str) -> str:  # noqa: A002 - the word of the domain
    """Where one step of a run on a resource of `type` is handed to `driver`."""
    return f"drivers.{check_token(driver, 'driver')}.resources.{check_token(type, 'resource type')}"


def node_dispatch(driver: str, node: str, type: str) -> str:  # noqa: A002
    """Like `step_dispatch`, for a step that must run on `node`, where its sandbox is."""
    return (
        f"drivers.{check_token(driver, 'driver')}.node.{check_token(node, 'node')}"
        f".resources.{check_token(type, 'resource type')}"
    )


def direct_event(type: str) -> str:  # noqa: A002
    """Where other publishers put events of resources of `type` without a pipeline."""
    return f"resources.{check_token(type, 'resource type')}"


def log(run_id: str) -> str:
    """Where the log lines of a run are stored."""
    return f"logs.{check_token(run_id, 'run id')}"


def live_log(run_id: str, driver: str) -> str:
    """Where log lines fly by unstored, for Conveyor's clients."""
    return f"live.logs.{check_token(run_id, 'run id')}.{check_token(driver, 'driver')}"


def kv(key: str) -> str:
    """The subject of a key of the state bucket; each part of the key must be a token."""
    if _KEY.fullmatch(key) is None:
        for part in key.split("."):
            check_token(part, "key part")
    return f"{KV}{key}"


def cancel_hint(run_id: str) -> str:
    """Where workers are told to look at a run at once; in no stream, so a lost hint costs only time."""
    return f"cv.hint.cancel.{check_token(run_id, 'run id')}"


def overtake_hint(driver: str) -> str:
    """Where the workers of a driver are told that a dispatch comes before others; in no stream, as above."""
    return f"cv.hint.overtake.{check_token(driver, 'driver')}"


def dead_letter(kind: str) -> str:
    """Where copies of undeliverable messages of `kind` go."""
    return f"cv.dlq.{check_token(kind, 'kind of dead letter')}"


def driver_consumer(driver: str) -> str:
    """The durable consumer of a driver: never its bare name, which belongs to Conveyor's Go SDK."""
    return f"{CONSUMERS}{check_token(driver, 'driver')}"


def node_consumer(driver: str, node: str) -> str:
    """The durable consumer of a driver for what must run on one node."""
    return f"{CONSUMERS}{check_token(driver, 'driver')}-node-{check_token(node, 'node')}"


def matches(pattern: str, subject: str) -> bool:
    """Whether a consumer that filters by `pattern` (`*` is one part, `>` all that follow) is handed `subject`."""
    wanted, parts = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        wanted.pop()
        if len(parts) <= len(wanted):
            return False
        parts = parts[: len(wanted)]
    return len(wanted) == len(parts) and all(want in ("*", part) for want, part in zip(wanted, parts, strict=True))
