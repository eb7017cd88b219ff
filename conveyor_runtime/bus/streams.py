"""The streams of a bus of ours, declared once, and how they are made and kept that way.

All is done on raw JSON: the client's own config classes drop the fields they do not know, and a stream
written back through them loses its group commit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conveyor_runtime.bus.connection import Bus
from conveyor_runtime.bus.consumers import consumer_info, ensure_consumer, list_consumers
from conveyor_runtime.bus.errors import ApiError
from conveyor_runtime.bus.messages import delete_message, last_by_subject, next_by_subject
from conveyor_runtime.bus.subjects import KV
from conveyor_runtime.bus.wire import StoredMsg
from conveyor_runtime.errors import BusError

__all__ = [
    "DLQ",
    "DUPLICATE_WINDOW",
    "GO_LOGS",
    "GO_RESULTS",
    "LOGS",
    "MESSAGES",
    "RESULTS",
    "STATE",
    "STREAMS",
    "StoredMsg",
    "allow_atomic",
    "consumer_info",
    "delete_message",
    "ensure_consumer",
    "ensure_streams",
    "is_foreign_engine",
    "is_ours",
    "last_by_subject",
    "list_consumers",
    "next_by_subject",
    "put_back",
    "stream_info",
    "stream_of",
]

MESSAGES = "messages"
RESULTS = "cv-results"
LOGS = "cv-logs"
STATE = "KV_cv-state"
DLQ = "cv-dlq"

#: Streams of a Go Conveyor engine.
GO_RESULTS = "pipeline-engine"
GO_LOGS = "logs-engine"

MINIMUM = (2, 12, 1)
"""The first nats-server whose atomic batches refuse duplicates."""

#: Seconds for which a stream knows the Msg-Ids it has stored.
DUPLICATE_WINDOW = 120

_DAY = 24 * 3600 * 10**9
_NOT_FOUND = 10059
_OVERLAP = 10065

_COMMON: dict[str, Any] = {
    "storage": "file",
    "discard": "new",
    "max_consumers": -1,
    "max_msgs": -1,
    "max_bytes": -1,
    "max_msg_size": -1,
    "duplicate_window": DUPLICATE_WINDOW * 10**9,
    "allow_atomic": True,
}

STREAMS: Mapping[str, Mapping[str, Any]] = {
    # Limits, here and for results: dropping a message at its acknowledgement has the server write and sync a note of
    # that, one by one (bench_ack: 900 to 1,500 acks/s at `always`, against 32,000 where they drop nothing). The engine
    # throws away what has been worked off. No age limit, it would drop work that waits for a driver. The inactive
    # threshold keeps the consumers of Conveyor's Go SDK, which sets none of its own, alive while their driver is down.
    MESSAGES: {
        **_COMMON,
        "subjects": ["resources.>", "events.>", "drivers.>"],
        "retention": "limits",
        "max_age": 0,
        "max_msgs_per_subject": -1,
        "consumer_limits": {"inactive_threshold": 30 * _DAY},
    },
    RESULTS: {
        **_COMMON,
        "subjects": ["pipelines.>"],
        "retention": "limits",
        "max_age": 0,
        "max_msgs_per_subject": -1,
    },
    LOGS: {
        **_COMMON,
        "subjects": ["logs.>"],
        "retention": "limits",
        "discard": "old",
        "max_age": 60 * _DAY,
        "max_msgs_per_subject": -1,
    },
    # A key-value bucket as the `nats kv` tools know it. No direct reads: they may be stale, and every decision here
    # rests on a read.
    STATE: {
        **_COMMON,
        "subjects": [f"{KV}>"],
        "retention": "limits",
        "max_age": 0,
        "max_msgs_per_subject": 1,
        "allow_rollup_hdrs": True,
        "deny_delete": True,
        "allow_direct": False,
        "allow_msg_ttl": True,
    },
    DLQ: {
        **_COMMON,
        "subjects": ["cv.dlq.>"],
        "retention": "limits",
        "discard": "old",
        "max_age": 30 * _DAY,
        "max_msgs_per_subject": -1,
    },
}


async def stream_info(bus: Bus, stream: str, *, subjects: bool = False) -> dict[str, Any] | None:
    """The server's info of a stream (`config`, `state`, in there the messages of each subject if they are asked for),
    or None when there is no such stream."""
    try:
        return await bus.api(f"STREAM.INFO.{stream}", {"subjects_filter": ">"} if subjects else None)
    except ApiError as exc:
        if exc.code == _NOT_FOUND:
            return None
        raise


async def stream_of(bus: Bus, subject: str) -> str | None:
    """The name of the stream that takes messages on `subject`, or None."""
    names = (await bus.api("STREAM.NAMES", {"subject": subject}))["streams"] or []
    return names[0] if names else None


async def is_ours(bus: Bus) -> bool:
    """Whether this bus has our state bucket; without it, it belongs to somebody else (or is new)."""
    return await stream_info(bus, STATE) is not None


async def is_foreign_engine(bus: Bus) -> bool:
    """Whether a Go Conveyor engine runs this bus: only its results stream has that name."""
    return await stream_info(bus, GO_RESULTS) is not None


async def ensure_streams(bus: Bus, *, replicas: int | None = None) -> None:
    """Create the streams that are missing and set right what differs in the fields we declare.

    `replicas` None leaves those of a stream as they are, and makes a new one with one. May be called by many processes
    at once and again at any time. Raises BusError, saying how to mend it, when the bus cannot hold our streams.
    """
    if (0, 0, 0) < bus.server_version < MINIMUM:
        # Before anything is made: a Go Conveyor engine that is still starting must find its bus as it was.
        have, need = (".".join(map(str, version)) for version in (bus.server_version, MINIMUM))
        raise BusError(f"nats-server {have} cannot hold our streams, {need} or newer is needed")
    for name, declared in STREAMS.items():
        config = {"name": name, **declared}
        if replicas is not None:
            config["num_replicas"] = replicas
        info = await stream_info(bus, name)
        if info is None:
            try:
                info = await bus.api(f"STREAM.CREATE.{name}", config, timeout=10)
            except ApiError as exc:
                info = await stream_info(bus, name)  # somebody else made it meanwhile
                if info is None:
                    raise _explain(name, declared, exc) from exc
        await _patch(bus, name, info["config"], config)


async def put_back(bus: Bus, stream: str, config: Mapping[str, Any]) -> list[str]:
    """Make a stream of ours, which is configured so, what we declare; the names of the fields that differed."""
    return await _patch(bus, stream, config, STREAMS[stream])


async def allow_atomic(bus: Bus, stream: str) -> bool:
    """Give a stream of ours its group commit back; False when the stream or the bus is not ours."""
    if stream not in STREAMS or not await is_ours(bus):
        return False
    info = await stream_info(bus, stream)
    if info is None:
        return False
    await _patch(bus, stream, info["config"], {"allow_atomic": True})
    return True


async def _patch(bus: Bus, name: str, current: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Set right what differs; the names of those fields."""
    if not (different := _differs(current, wanted)):
        return []
    # What others have added stays as it is.
    config = {**current, **wanted}
    limits = {**current.get("consumer_limits", {}), **wanted.get("consumer_limits", {})}
    if limits:
        config["consumer_limits"] = limits
    try:
        info = await bus.api(f"STREAM.UPDATE.{name}", config, timeout=10)
    except ApiError as exc:
        raise _explain(name, wanted, exc) from exc
    if left := _differs(info["config"], wanted):
        raise BusError(
            f"the server did not take {', '.join(left)} of stream {name}; nats-server 2.12.1 or newer is needed"
        )
    return different


def _differs(current: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Names of the wanted fields that the server holds differently (it leaves out what is false or zero)."""
    left = []
    for key, value in wanted.items():
        have = current.get(key)
        if key == "subjects":
            same = set(have or ()) == set(value)
        elif isinstance(value, Mapping):
            same = all((have or {}).get(k) == v for k, v in value.items())
        else:
            same = have == value or (not have and not value)
        if not same:
            left.append(key)
    return left


def _explain(name: str, config: Mapping[str, Any], exc: ApiError) -> BusError:
    subjects = ", ".join(config.get("subjects", ()))
    if exc.code == _OVERLAP:
        return BusError(
            f"cannot make stream {name} [{subjects}]: another stream on this bus takes these subjects already, most "
            "likely of a Go Conveyor engine. Give the runtime a bus or an account of its own, or stop that engine "
            f"and remove its streams ({GO_RESULTS}, {GO_LOGS})."
        )
    if "unknown field" in exc.description:
        return BusError(f"cannot make stream {name}: nats-server 2.12.1 or newer is needed ({exc.description})")
    return BusError(
        f"cannot make or update stream {name} [{subjects}]: {exc.description} ({exc.code}); compare it with "
        f"`nats stream info {name}`"
    )
