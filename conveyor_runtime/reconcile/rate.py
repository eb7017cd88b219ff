"""The rate limit of a driver: a token bucket that all its processes share, kept as the one time it takes to be one.

That time says when the bucket would be full again; a run that begins moves it on by what one token takes to come.
Several processes move it by compare-and-set. Each judges it by its own clock, so what lies further ahead than a full
bucket's worth was written by a clock that is fast, and is set back.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta

from conveyor_runtime.bus import Delivery
from conveyor_runtime.bus.rated import RatedSlots
from conveyor_runtime.errors import ConfigError, RevisionConflict
from conveyor_runtime.models import RateState, utc_now
from conveyor_runtime.reconcile.again import give_back
from conveyor_runtime.store import Put, State, keys

#: By how much two machines' clocks may differ without being wrong.
_SKEW = timedelta(seconds=1)

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class RateLimit:
    """`count` runs per `per` seconds, evenly; up to `burst` at once after a rest. Raises ConfigError."""

    count: float
    per: float = 1.0
    burst: int = 1

    def __post_init__(self) -> None:
        if not (self.count > 0 and self.per > 0 and self.burst >= 1):
            raise ConfigError(f"{self}: count and per must be above 0, burst at least 1")

    @classmethod
    def of(cls, text: str | RateLimit) -> RateLimit:
        """The limit that `10/s`, `30/m` or `5/h` says. Raises ConfigError."""
        if isinstance(text, RateLimit):
            return text
        match = re.fullmatch(r"(\d+(?:\.\d+)?)/([smh])", text)
        if match is None:
            raise ConfigError(f"{text!r} is no rate; write a number and a unit like 10/s, 30/m, 5/h")
        return cls(float(match[1]), _UNITS[match[2]])

    def __str__(self) -> str:
        unit = next((unit for unit, seconds in _UNITS.items() if seconds == self.per), None)
        rate = f"{self.count:g}/{unit}" if unit else f"{self.count:g} per {self.per:g} s"
        return rate if self.burst == 1 else f"{rate}, {self.burst} at once"


class RateGate:
    """Lets deliveries of one driver pass as its limit allows. `slots` are those of this process."""

    def __init__(self, driver: str, limit: RateLimit, state: State, slots: RatedSlots) -> None:
        self._driver = driver
        self._interval = timedelta(seconds=limit.per / limit.count)
        self._tolerance = self._interval * (limit.burst - 1)
        self._state = state
        self._slots = slots

    async def lets_pass(self, delivery: Delivery) -> bool:
        """Whether a run may begin now. If not, the delivery has been given back until one may: it waits on the server
        and holds no slot. Raises StoreError, BusUnavailable."""
        wait = await self._take()
        if wait is None:
            self._slots.another()
            return True
        self._slots.pause(wait)
        await give_back(delivery, self._state, wait)
        return False

    async def _take(self) -> float | None:
        """Take a token; None if there was one, else the seconds until there will be."""
        while True:
            found = await self._state.rate(self._driver)
            now = utc_now()
            latest = now + self._tolerance + self._interval
            full_at = max(found.record.full_at, now) if found is not None else now
            is_ahead = full_at > latest + _SKEW
            full_at = min(full_at, latest)
            early = (full_at - self._tolerance - now).total_seconds()
            if early > 0 and not is_ahead:
                return early
            left = RateState(full_at=full_at if is_ahead else full_at + self._interval)
            try:
                await self._state.commit(Put(keys.rate(self._driver), left, found.revision if found else 0))
            except RevisionConflict:
                continue
            return early if is_ahead else None
