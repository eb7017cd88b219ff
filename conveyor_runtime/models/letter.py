"""Dead letters as the API answers them and the client returns them."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from conveyor_runtime.models.base import Model


class DeadLetter(Model):
    """A message that nobody could work on. `id` is its place among them, oldest first.

    `kind` is `dispatch` (for a driver) or `results` (of one), `subject` where it was sent to. `run_id`, `step` and
    `attempt` are what it names, empty or 0 where it names none. `size` counts the bytes that are kept; `cut` says that
    it was larger.
    """

    id: int
    kind: str
    reason: str
    subject: str
    time: datetime
    run_id: str = ""
    step: str = ""
    attempt: int = 0
    size: int = 0
    cut: bool = False


class WholeDeadLetter(DeadLetter):
    """A dead letter with its message: `data` is what its JSON holds, or its text where it is none."""

    headers: dict[str, str] = Field(default_factory=dict)
    data: Any = None


class Redriven(Model):
    """What became of a dead letter that was put back in play.

    `reopened`: its step has another attempt, in the run it was of. `rerun`: its run has ended, and `run_id` is a new
    one. `published`: it was sent once more to where it came from.
    """

    id: int
    action: Literal["reopened", "rerun", "published"]
    run_id: str = ""


class Purged(Model):
    """How many dead letters were removed."""

    purged: int
