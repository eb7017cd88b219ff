"""What every model shares: frozen, tolerant of fields it does not know, compact on the wire."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, StringConstraints

NAME_PATTERN = r"^[A-Za-z0-9_-]{1,128}$"
NAME_RULE = "1 to 128 characters out of A-Z a-z 0-9 _ -"

#: A name that may stand in a NATS subject.
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]

_NAME = re.compile(NAME_PATTERN[1:-1])
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")
_LONGEST = timedelta(days=366).total_seconds()


def is_name(text: str) -> bool:
    """Whether `text` may be the name of a resource, type, driver, pipeline or step."""
    return _NAME.fullmatch(text) is not None


def parse_duration(value: Any) -> float:
    """Seconds of `90`, `"90"`, `"90s"`, `"5m"`, `"1h30m"`; ValueError if it is none of these or not above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("a duration is a number of seconds or a text like 90s, 5m, 1h30m")
    if isinstance(value, str):
        text = value.strip()
        match = _DURATION.fullmatch(text)
        if re.fullmatch(r"\d+(\.\d+)?", text):
            seconds = float(text)
        elif text and match and any(match.groups()):
            hours, minutes, rest = (float(part or 0) for part in match.groups())
            seconds = hours * 3600 + minutes * 60 + rest
        else:
            raise ValueError(f"{value!r} is no duration; write a number of seconds or 90s, 5m, 1h30m")
    else:
        try:
            seconds = float(value)
        except OverflowError:
            seconds = float("inf")
    if not 0 < seconds <= _LONGEST:
        raise ValueError("a duration must be above 0 and at most a year")
    return seconds


#: Seconds; written as a number or as 90s, 5m, 1h30m.
Duration = Annotated[float, BeforeValidator(parse_duration)]


def utc_now() -> datetime:
    """The wall clock, for records people read; never for measuring."""
    return datetime.now(UTC)


class Model(BaseModel):
    """Frozen; unknown fields are ignored on read, so that newer writers and foreign SDKs can share the bus."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True, defer_build=True)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As pydantic's own, at a third of its cost: transitions are copies, dozens for every run."""
        if deep or self.__pydantic_private__ is not None:
            return super().model_copy(update=update, deep=deep)
        copy = object.__new__(type(self))
        object.__setattr__(copy, "__dict__", {**self.__dict__, **(update or {})})
        object.__setattr__(copy, "__pydantic_fields_set__", {*self.__pydantic_fields_set__, *(update or ())})
        object.__setattr__(
            copy, "__pydantic_extra__", dict(self.__pydantic_extra__) if self.__pydantic_extra__ else None
        )
        object.__setattr__(copy, "__pydantic_private__", None)
        return copy

    def encode(self) -> bytes:
        """The compact JSON that is stored: fields at their default are left out."""
        # Not `model_dump_json`: that makes a text of these bytes first.
        return self.__pydantic_serializer__.to_json(self, exclude_defaults=True, by_alias=True)
