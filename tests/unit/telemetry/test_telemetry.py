import json
import logging
import socket
from types import SimpleNamespace

import pytest

from conveyor_runtime.errors import ConfigError
from conveyor_runtime.telemetry import metrics
from conveyor_runtime.telemetry.logs import setup_logging

log = logging.getLogger("conveyor_runtime.test")


@pytest.fixture(autouse=True)
def _as_before():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("uvicorn.access").disabled = False


def test_text(capsys):
    setup_logging("info", "text")
    log.info("bus lost", extra={"url": "nats://u:p@h", "why": "no answer", "n": 3})
    log.debug("not shown")
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith('INFO    conveyor_runtime.test: bus lost url=nats://***@h why="no answer" n=3')


def test_a_record_is_one_line(capsys):
    setup_logging()
    log.warning("forged\n2026-01-01 ERROR \x1b[31mred", extra={"field": "a\rb\x9b"})
    [line] = capsys.readouterr().err.splitlines()
    assert "\\n" in line
    assert "\\x1b" in line
    assert "\\r" in line
    assert "\\x9b" in line


def test_json(capsys):
    setup_logging("debug", "json")
    try:
        raise ValueError("https://u:p@h refused")
    except ValueError:
        log.exception("failed", extra={"run_id": "r", "message2": {"a": 1}, "odd": object})
    [line] = capsys.readouterr().err.splitlines()
    body = json.loads(line)
    assert body["message"] == "failed"
    assert body["level"] == "error"
    assert body["run_id"] == "r"
    assert body["message2"] == {"a": 1}
    assert "https://***@h refused" in body["exception"]


def test_again_replaces(capsys):
    setup_logging()
    setup_logging("info", "json")
    log.info("once")
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_uvicorn_is_tamed(capsys):
    setup_logging("info")
    logging.getLogger("uvicorn.access").info("GET / 200")
    logging.getLogger("uvicorn.error").info("Started server process")
    logging.getLogger("uvicorn.error").error("broken")
    [line] = capsys.readouterr().err.splitlines()
    assert "uvicorn.error: broken" in line


@pytest.mark.parametrize(("level", "form"), [("loud", "text"), ("info", "xml")])
def test_refused(level, form):
    with pytest.raises(ConfigError):
        setup_logging(level, form)


def test_committers_are_read_when_looked_at():
    stats = SimpleNamespace(commits=1, messages=2, batches=3, refused=4)
    metrics.observe_committer("test-stream", stats)
    stats.commits = 7
    text = metrics.render().decode()
    assert 'conveyor_commits_total{stream="test-stream"} 7.0' in text
    assert 'conveyor_commit_batches_total{stream="test-stream"} 3.0' in text


def test_no_instrument_names_a_run():
    labels = {label for instrument in vars(metrics).values() for label in getattr(instrument, "_labelnames", ())}
    assert labels == {"method", "route", "status", "transport", "pipeline", "driver", "outcome"}


@pytest.mark.parametrize("address", ["x", "127.0.0.1:", "127.0.0.1:99999", ":-1"])
def test_metrics_want_an_address(address):
    with pytest.raises(ConfigError, match="write PORT or HOST:PORT"), metrics.served(address):
        pass


def test_metrics_on_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(ConfigError, match=f"metrics cannot be served on {port}: Address already in use"),
            metrics.served(str(port)),
        ):
            pass
    with metrics.served(""):
        pass
