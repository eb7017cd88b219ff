"""How many events one driver process works off per second, beside its peers in the same minutes.

    python -m tests.benchmarks.bench_dispatch [--events N] [--rounds N] [--only NAME,...]

No-op work on 600-byte messages that wait already, each answered by a stored result before it is acknowledged. Ours is a
`conveyor driver run` process at `always`: `runs` with a claim for each event, `plain` without (the plain contract). The
peers of peers.py run at the server's default interval, the plain loop at both. Every round measures all of them in
turn; a ratio is the median of the rounds. Beside the wall's clock, which a busy machine bends, stand the CPU
milliseconds an event cost the process and the server.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Awaitable, Callable

import uvloop

from tests.benchmarks import peers, report
from tests.benchmarks.harness import Speed
from tests.benchmarks.throughput import DEFAULT, ours, theirs

GOALS = (
    ("runs", "FastStream", 3.5),
    ("plain", "FastStream", 4.5),
    ("runs", "taskiq-nats", 3.0),
    ("plain", "taskiq-nats", 3.0),
    ("runs", "plain loop, always", 3.0),
    ("plain", "plain loop, always", 3.0),
    ("runs", "plain loop", 1.2),
    ("plain", "plain loop", 1.2),
)


def contestants(events: int) -> dict[str, tuple[str, Callable[[], Awaitable[Speed]]]]:
    """All that can be measured here: the sync setting and how."""
    found: dict[str, tuple[str, Callable[[], Awaitable[Speed]]]] = {
        "runs": ("always", lambda: ours(events, "always", claims=True)),
        "plain": ("always", lambda: ours(events, "always", claims=False)),
        "plain loop, always": ("always", lambda: theirs(events, "always", peers.LOOP)),
        "plain loop": (DEFAULT, lambda: theirs(events, DEFAULT, peers.LOOP)),
    }
    if peers.FASTSTREAM.there:
        found["FastStream"] = (DEFAULT, lambda: theirs(events, DEFAULT, peers.FASTSTREAM))
    if peers.TASKIQ.there:
        found["taskiq-nats"] = (DEFAULT, lambda: theirs(events, DEFAULT, peers.TASKIQ))
    return found


async def main(events: int, rounds: int, only: list[str]) -> None:
    measured: dict[str, list[Speed]] = {}
    settings = {name: it for name, it in contestants(events).items() if not only or name in only}
    for number in range(rounds):
        # The other way round every second time, so that what runs before whom evens out.
        for name, (sync, measure) in list(settings.items())[:: -1 if number % 2 else 1]:
            speed = await measure()
            measured.setdefault(name, []).append(speed)
            print(f"  round {number + 1}: {name} ({sync}) {speed.rate:.0f}/s", flush=True)
    of = f"{rounds} x {events} events"
    for name, (sync, _) in settings.items():
        report.row(f"dispatch: {name}", sync, of, _figures(measured[name]))
    for us, them, least in GOALS:
        if us in measured and them in measured:
            pairs = list(zip(measured[us], measured[them], strict=True))
            wall = statistics.median(our.rate / their.rate for our, their in pairs)
            cpu = statistics.median(their.workers_ms / our.workers_ms for our, their in pairs)
            what = f"dispatch: {us} / {them}"
            report.goal(what, f"always / {settings[them][0]}", of, f"events/s, {us} / {them}", wall, least=least)
            report.row(what, "", of, {"by the CPU of the process": cpu})


def _figures(speeds: list[Speed]) -> dict[str, float]:
    return {
        "events/s": statistics.median(speed.rate for speed in speeds),
        "process ms/event": statistics.median(speed.workers_ms for speed in speeds),
        "server ms/event": statistics.median(speed.server_ms for speed in speeds),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", type=lambda text: text.split(","), default=[])
    options = parser.parse_args()
    uvloop.run(main(options.events, options.rounds, options.only))
