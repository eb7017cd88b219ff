"""Every instrument of the product, in one place. Units are in the names; run ids and resource names are never labels,
because a label's values must be few."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from conveyor_runtime.errors import ConfigError

#: Our own: what a user's code registers in the library's default registry is not ours to publish.
REGISTRY = CollectorRegistry()

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_WORK_SECONDS = (0.1, 0.5, 1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600)

HTTP_REQUESTS = Counter(
    "conveyor_http_requests",
    "HTTP requests answered, by route template.",
    ("method", "route", "status"),
    registry=REGISTRY,
)
HTTP_SECONDS = Histogram(
    "conveyor_http_request_duration_seconds",
    "Seconds until an HTTP request was answered; streams count until they end.",
    ("method", "route"),
    registry=REGISTRY,
)
LOG_FOLLOWERS = Gauge("conveyor_log_followers", "Clients following a run's log now.", ("transport",), registry=REGISTRY)

RUNS_FINISHED = Counter(
    "conveyor_runs_finished", "Runs that reached a terminal state.", ("pipeline", "status"), registry=REGISTRY
)
RUNS_LIVE = Gauge("conveyor_runs_live", "Runs that are not terminal.", registry=REGISTRY)
STEPS_FINISHED = Counter(
    "conveyor_steps_finished", "Steps that reached a terminal state.", ("driver", "status"), registry=REGISTRY
)
STEP_SECONDS = Histogram(
    "conveyor_step_duration_seconds",
    "Seconds from the start of a step's last attempt to its end.",
    ("driver",),
    buckets=_WORK_SECONDS,
    registry=REGISTRY,
)
RESULTS_FOLDED = Counter(
    "conveyor_results_folded", "Results of drivers taken into their run's record.", registry=REGISTRY
)
DISPATCHES_PUBLISHED = Counter(
    "conveyor_dispatches_published", "Steps handed to the bus, repeats included.", registry=REGISTRY
)
TAKEOVERS = Counter(
    "conveyor_takeovers", "Attempts handed to another worker because theirs died or gave up.", registry=REGISTRY
)

RECONCILES = Counter(
    "conveyor_reconciles", "Calls of reconcile that returned or raised.", ("driver", "outcome"), registry=REGISTRY
)
RECONCILE_SECONDS = Histogram(
    "conveyor_reconcile_duration_seconds",
    "Seconds spent in one call of reconcile.",
    ("driver",),
    buckets=_WORK_SECONDS,
    registry=REGISTRY,
)
JOBS = Gauge("conveyor_jobs", "Attempts this process has in hand now.", ("driver",), registry=REGISTRY)
SLOTS = Gauge("conveyor_slots", "Attempts this process works on at most at once.", ("driver",), registry=REGISTRY)
LOG_LINES = Counter("conveyor_log_lines", "Log lines of runs stored by this process.", registry=REGISTRY)

WARM_SANDBOXES = Counter(
    "conveyor_warm_sandboxes",
    "Sandboxes of an image that is kept ready: hit = one stood ready, miss = it was started.",
    ("outcome",),
    registry=REGISTRY,
)

BUS_CONNECTED = Gauge("conveyor_bus_connected", "1 while connected to the bus, else 0.", registry=REGISTRY)
BUS_DROPPED = Counter(
    "conveyor_bus_dropped_messages",
    "Unstored messages (live lines, hints) thrown away because they could not leave at once.",
    registry=REGISTRY,
)
BUS_RESTARTS = Counter(
    "conveyor_bus_server_restarts",
    "Times the embedded nats-server ended by itself and was started again.",
    registry=REGISTRY,
)

ProcessCollector(registry=REGISTRY)


class CommitterStats(Protocol):
    """What a committer counts by itself, read when somebody looks."""

    commits: int
    messages: int
    batches: int
    refused: int


class _Committers(Collector):
    """Shows the counts that committers keep anyway, so that their hot path pays nothing for metrics."""

    def __init__(self) -> None:
        self.by_stream: dict[str, CommitterStats] = {}

    def collect(self) -> Iterable[Metric]:
        units = CounterMetricFamily("conveyor_commits", "Units stored by group commit.", labels=["stream"])
        messages = CounterMetricFamily("conveyor_commit_messages", "Messages in those units.", labels=["stream"])
        batches = CounterMetricFamily("conveyor_commit_batches", "Atomic batches stored.", labels=["stream"])
        refused = CounterMetricFamily(
            "conveyor_commit_refusals", "Publishes and batches the stream refused.", labels=["stream"]
        )
        for stream, stats in self.by_stream.items():
            units.add_metric([stream], stats.commits)
            messages.add_metric([stream], stats.messages)
            batches.add_metric([stream], stats.batches)
            refused.add_metric([stream], stats.refused)
        return (units, messages, batches, refused)


_committers = _Committers()
REGISTRY.register(_committers)


def observe_committer(stream: str, stats: CommitterStats) -> None:
    """Publish what the committer of `stream` counts; one per process and stream, the last one given wins."""
    _committers.by_stream[stream] = stats


def render() -> bytes:
    """All metrics in the Prometheus text format, of type `CONTENT_TYPE`."""
    return generate_latest(REGISTRY)


@contextmanager
def served(address: str) -> Iterator[None]:
    """Have `[HOST:]PORT` answer GET /metrics for as long as the block lasts; empty = not. Without a host only this
    machine can ask. Raises ConfigError."""
    if not address:
        yield
        return
    host, _, port = address.rpartition(":")
    if not (port.isdecimal() and int(port) < 65536):
        raise ConfigError(f"{address!r} is no address for metrics; write PORT or HOST:PORT")
    try:
        server, thread = start_http_server(int(port), host.strip("[]") or "127.0.0.1", REGISTRY)
    except OSError as error:
        raise ConfigError(f"metrics cannot be served on {address}: {error.strerror or error}") from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
