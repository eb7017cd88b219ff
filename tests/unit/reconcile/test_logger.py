"""Lines: stored in order, each once, none of them a secret."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable

import orjson
import pytest

from conveyor_runtime.models import LogLine
from conveyor_runtime.reconcile.adapters import LineWriter
from conveyor_runtime.reconcile.logger import _BACKLOG
from tests.unit.reconcile.fakes import RUN, FakeBus, FakeCommitter, a_logger

pytestmark = pytest.mark.looptime


async def test_lines_are_stored_in_order_with_their_names() -> None:
    """Rule 19."""
    committer, bus = FakeCommitter(), FakeBus()
    logger = a_logger(committer, bus)
    logger.debug("one")
    logger.info("two", part="x", number=3)
    logger.warning("three")
    logger.error("four")
    logger.log({"a": "b"}, "five")
    await logger.line("six", stream="stderr")
    await logger.flush()
    assert committer.texts == ["one", "two", "three", "four", "five", "six"]
    assert [line["seq"] for line in committer.lines] == [1, 2, 3, 4, 5, 6]
    assert [line["level"] for line in committer.lines] == ["debug", "info", "warning", "error", "info", "info"]
    assert committer.lines[1]["labels"] == {"part": "x", "number": "3"} and committer.lines[4]["labels"] == {"a": "b"}
    assert committer.lines[5]["stream"] == "stderr" and "stream" not in committer.lines[0]
    line = LogLine.model_validate(committer.lines[0])
    assert (line.runid, line.driver, line.pipeline, line.step, line.attempt) == (RUN, "d", "p", "s", 1)
    assert line.timestamp.isdecimal() and line.time.endswith("Z") and line.at is not None
    assert {message.subject for message in committer.stored} == {f"logs.{RUN}"}
    assert len({message.msg_id for message in committer.stored}) == 6
    assert [orjson.loads(data)["seq"] for _, data in bus.live] == [1, 2, 3, 4, 5, 6]
    assert {subject for subject, _ in bus.live} == {f"live.logs.{RUN}.d"}
    await logger.close()


async def test_flush_returns_only_when_all_is_stored_however_long_the_bus_is_away() -> None:
    """Rules 9 and 19."""
    committer = FakeCommitter()
    loop, begun = asyncio.get_running_loop(), asyncio.get_running_loop().time()
    committer.fail = lambda: loop.time() - begun < 60
    logger = a_logger(committer)
    for number in range(450):
        logger.info(str(number))
    flushing = asyncio.create_task(logger.flush())
    await asyncio.sleep(59)
    assert not flushing.done() and committer.stored == []
    await flushing
    assert committer.texts == [str(number) for number in range(450)] and committer.units == [200, 200, 50]
    await logger.close()


async def test_flush_of_nothing_is_done() -> None:
    await a_logger(FakeCommitter()).flush()


async def test_long_and_many_lines_are_split_into_lines() -> None:
    committer = FakeCommitter()
    logger = a_logger(committer)
    logger.info("a\nb\n\nc")
    logger.info("")
    logger.info("x" * 40_000)
    await logger.flush()
    assert committer.texts[:5] == ["a", "b", "", "c", ""]
    assert [len(text) for text in committer.texts[5:]] == [16384, 16384, 7232]
    await logger.close()


async def test_labels_are_cut_so_that_every_line_fits_a_message() -> None:
    committer = FakeCommitter()
    logger = a_logger(committer)
    logger.log({"k" * 5000: "v" * 2_000_000, **{str(number): "x" for number in range(200)}}, "m")
    await logger.flush()
    [line] = committer.lines
    assert len(committer.stored[0].data) < 10_000 and len(line["labels"]) == 50
    await logger.close()


async def test_half_characters_do_not_break_a_line() -> None:
    committer = FakeCommitter()
    logger = a_logger(committer)
    logger.info("name \udcff", where="\udc80")
    await logger.flush()
    assert committer.texts == ["name ?"] and committer.lines[0]["labels"] == {"where": "?"}
    await logger.close()


async def test_secrets_are_masked_everywhere() -> None:
    committer = FakeCommitter()
    logger = a_logger(committer)
    logger.redact("s3cret-value")
    logger.redact("line one\nline two")
    logger.info("token s3cret-value", label="s3cret-value")
    await logger.line("cloning https://user:pw@host/x s3cret-value")
    writer = logger.stream()
    writer.write("half s3cret")
    writer.write("-value\n")
    logger.handler().emit(logging.makeLogRecord({"msg": "%s", "args": ("s3cret-value",)}))
    logger.info("line two")
    await logger.flush()
    stored = b"".join(message.data for message in committer.stored)
    assert b"s3cret" not in stored and b"pw@" not in stored and b"line two" not in stored
    assert committer.texts[0] == "token ***"
    await logger.close()


async def test_a_stream_gives_out_whole_lines_and_its_rest_at_the_end() -> None:
    committer = FakeCommitter()
    logger = a_logger(committer)
    out = logger.stream("stderr")
    print("a", "b", file=out)
    print("no end", end="", file=out)
    assert out.write("") == 0
    out.flush()
    await asyncio.sleep(1)
    assert committer.texts == ["a b"]
    await logger.flush()
    assert committer.texts == ["a b", "no end"] and committer.lines[1]["stream"] == "stderr"
    await logger.close()


async def test_it_is_a_handler_of_the_standard_library() -> None:
    committer = FakeCommitter()
    logger = a_logger(committer)
    library = logging.getLogger("some.library")
    library.propagate = False
    handler = logger.handler(logging.INFO)
    library.addHandler(handler)
    library.setLevel(logging.DEBUG)
    library.debug("quiet")
    library.warning("number %d", 3)
    try:
        raise ValueError("inner")
    except ValueError:
        library.critical("it broke", exc_info=True)
    library.removeHandler(handler)
    await logger.flush()
    assert committer.texts[:2] == ["number 3", "it broke"] and committer.texts[-1] == "ValueError: inner"
    assert [line["level"] for line in committer.lines[:2]] == ["warning", "error"]
    assert committer.lines[0]["labels"] == {"logger": "some.library"}
    await logger.close()


async def test_threads_may_log_and_no_line_is_lost_or_numbered_twice() -> None:
    committer = FakeCommitter()
    logger = a_logger(committer)

    def chatter(name: str) -> None:
        for number in range(200):
            logger.info(f"{name}{number}")

    threads = [threading.Thread(target=chatter, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    await logger.flush()
    assert [line["seq"] for line in committer.lines] == list(range(1, 601))
    for name in "abc":
        assert [text for text in committer.texts if text[0] == name] == [f"{name}{number}" for number in range(200)]
    await logger.close()


async def test_a_fast_writer_waits_while_too_much_is_waiting() -> None:
    committer = FakeCommitter()
    loop, begun = asyncio.get_running_loop(), asyncio.get_running_loop().time()
    committer.fail = lambda: loop.time() - begun < 30
    logger = a_logger(committer)
    written = 0

    async def write() -> None:
        nonlocal written
        for number in range(_BACKLOG + 500):
            await logger.line(str(number))
            written += 1

    writing = asyncio.create_task(write())
    await asyncio.sleep(29)
    assert written == _BACKLOG
    await writing
    await logger.flush()
    assert len(committer.stored) == _BACKLOG + 500
    await logger.close()


def _chatter(say: Callable[[str], object], full: threading.Event) -> None:
    """In a thread: more lines than may wait."""
    for number in range(_BACKLOG + 500):
        if number == _BACKLOG:
            full.set()
        say(str(number))


@pytest.mark.parametrize("by", ["info", "stream", "handler"])
async def test_a_thread_waits_while_too_much_is_waiting(by: str) -> None:
    committer = FakeCommitter()
    committer.fail = lambda: True
    logger = a_logger(committer)
    stream, handler = logger.stream(), logger.handler()
    ways: dict[str, Callable[[str], object]] = {
        "info": logger.info,
        "stream": lambda text: stream.write(f"{text}\n"),
        "handler": lambda text: handler.handle(logging.makeLogRecord({"msg": text})),
    }
    full = threading.Event()
    chatter = asyncio.create_task(asyncio.to_thread(_chatter, ways[by], full))
    await asyncio.to_thread(full.wait)
    handler.handle(logging.makeLogRecord({"msg": "the loop does not wait for the thread"}))
    assert len(logger._waiting) <= _BACKLOG + 1
    assert not chatter.done()
    committer.fail = lambda: False
    await chatter
    await logger.flush()
    await logger.close()
    assert [text for text in committer.texts if text.isdigit()] == [str(n) for n in range(_BACKLOG + 500)]


async def test_a_thread_that_is_stopped_waits_no_more(caplog: pytest.LogCaptureFixture) -> None:
    committer = FakeCommitter()
    committer.fail = lambda: True
    logger = a_logger(committer)
    full = threading.Event()
    chatter = asyncio.create_task(asyncio.to_thread(_chatter, logger.info, full))
    await asyncio.to_thread(full.wait)
    logger.release()
    await chatter
    assert len(logger._waiting) == _BACKLOG
    await logger.close()
    assert "500 lines" in caplog.text


async def test_close_without_a_line_or_twice_is_nothing() -> None:
    logger = a_logger(FakeCommitter())
    await logger.close()
    logger.info("late")
    await logger.close()


def test_a_stream_without_line_ends_is_not_kept_for_ever() -> None:
    said: list[str] = []
    writer = LineWriter(said.append)
    for _ in range(1000):
        writer.write("x" * 1000)
    writer.close()
    assert "".join(said) == "x" * 1_000_000
    assert max(map(len, said)) < 70_000
    said.clear()
    writer.write("y" * 60_000 + " secr")
    writer.write("et" + "z" * 10_000)
    assert said == ["y" * 60_000 + " "], "a word is left whole"
