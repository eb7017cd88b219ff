"""Durable consumers of ours: made once, never recreated or deleted, and closed to foreign rewrites.

Conveyor's Go SDK creates or *updates* a consumer under its driver's name, and the server lets any such call
rewrite filters and limits. `max_waiting` cannot be updated, so a value no SDK uses makes such a call fail.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import orjson

from conveyor_runtime.bus.connection import Bus
from conveyor_runtime.bus.errors import ApiError
from conveyor_runtime.errors import BusError

__all__ = ["consumer_info", "ensure_consumer", "list_consumers"]

_CONSUMER_NOT_FOUND = 10014
_HASH = "cv.cfg"
_MAX_WAITING = 2048
_INACTIVE = 30 * 24 * 3600 * 10**9
_UPDATABLE = ("filter_subjects", "ack_wait", "max_ack_pending")


async def consumer_info(bus: Bus, stream: str, name: str) -> dict[str, Any] | None:
    """The server's info of a consumer, or None when there is none of that name."""
    try:
        return await bus.api(f"CONSUMER.INFO.{stream}.{name}")
    except ApiError as exc:
        if exc.code == _CONSUMER_NOT_FOUND:
            return None
        raise


async def list_consumers(bus: Bus, stream: str) -> list[dict[str, Any]]:
    """The infos of all consumers of a stream."""
    found: list[dict[str, Any]] = []
    while True:
        page = await bus.api(f"CONSUMER.LIST.{stream}", {"offset": len(found)})
        found += page["consumers"] or []
        if not page["consumers"] or len(found) >= page["total"]:
            return found


async def ensure_consumer(
    bus: Bus,
    stream: str,
    name: str,
    *,
    filters: Sequence[str],
    ack_wait: float = 30.0,
    max_ack_pending: int = 1000,
) -> dict[str, Any]:
    """Make the durable consumer `name`, or set ours right when it was declared otherwise; returns its info.

    `ack_wait` in seconds; `max_ack_pending` is for the whole fleet. Raises BusError when the name is taken by a
    consumer that is not ours, or when the server made of it something else.
    """
    wanted = _config(name, sorted(filters), ack_wait, max_ack_pending)
    info = await consumer_info(bus, stream, name)
    if info is None:
        try:
            info = await _write(bus, stream, name, wanted, "create")
        except ApiError as exc:
            info = await consumer_info(bus, stream, name)  # made by a neighbour meanwhile?
            if info is None:
                raise BusError(f"cannot make consumer {name} on {stream}: {exc.description} ({exc.code})") from exc
    current: dict[str, Any] = info["config"] if info else {}
    if _HASH not in current.get("metadata", {}):
        raise BusError(
            f"consumer {name} on stream {stream} is not ours; remove it (`nats consumer rm {stream} {name}`) once "
            "nobody works with it"
        )
    if current["metadata"][_HASH] != wanted["metadata"][_HASH] or _differs(current, wanted):
        changes = {key: wanted[key] for key in (*_UPDATABLE, "metadata")}
        try:
            await _write(bus, stream, name, {**current, **changes}, "update")
        except ApiError as exc:
            raise BusError(f"cannot update consumer {name} on {stream}: {exc.description} ({exc.code})") from exc
        info = await consumer_info(bus, stream, name)
    if info is None or (wrong := _differs(info["config"], wanted)):
        what = "is gone again" if info is None else f"has other {', '.join(wrong)} than asked for"
        raise BusError(f"consumer {name} on stream {stream} {what}")
    return info


def _config(name: str, filters: list[str], ack_wait: float, max_ack_pending: int) -> dict[str, Any]:
    config: dict[str, Any] = {
        "name": name,
        "durable_name": name,
        "filter_subjects": filters,
        "deliver_policy": "all",
        "ack_policy": "explicit",
        "replay_policy": "instant",
        "ack_wait": round(ack_wait * 10**9),
        "max_deliver": -1,
        "max_ack_pending": max_ack_pending,
        "max_waiting": _MAX_WAITING,
        # Explicit, or a consumer made over the remains of an ephemeral one inherits its few seconds.
        "inactive_threshold": _INACTIVE,
    }
    digest = hashlib.sha256(orjson.dumps(config, option=orjson.OPT_SORT_KEYS)).hexdigest()
    return {**config, "metadata": {_HASH: digest[:16]}}


async def _write(bus: Bus, stream: str, name: str, config: dict[str, Any], action: str) -> dict[str, Any] | None:
    body = {"stream_name": stream, "config": config, "action": action}
    # The single-filter form of this subject exists for permissions; several filters go in the plain one.
    await bus.api(f"CONSUMER.CREATE.{stream}.{name}", body, timeout=10)
    # Read again: what counts is what the server keeps, not what it echoes.
    return await consumer_info(bus, stream, name)


def _differs(current: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    wrong = []
    for key, value in wanted.items():
        have = current.get(key)
        if key == "filter_subjects":
            have = sorted(have or ([current["filter_subject"]] if current.get("filter_subject") else []))
        if key == "metadata":
            continue
        if have != value:
            wrong.append(key)
    return wrong
