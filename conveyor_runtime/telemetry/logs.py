"""Logs of our processes, to stderr: a constant message, and fields beside it (`log.info("bus lost", extra={...})`).

Not the logs of runs: those are data, kept in the log stream.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

import orjson

from conveyor_runtime.errors import ConfigError
from conveyor_runtime.security import redact_url

LogFormat = Literal["text", "json"]

LEVELS = ("debug", "info", "warning", "error")

#: What every record has; anything else on it is a field somebody gave.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "websocket"}

#: A record is one line: what would break it, or play tricks on a terminal, is written as an escape.
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {10: "\\n", 13: "\\r", 9: "\\t"}


def _fields(record: logging.LogRecord) -> Iterator[tuple[str, Any]]:
    for key, value in vars(record).items():
        if key not in _STANDARD and not key.startswith("_"):
            yield key, value


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        text = record.getMessage() + "".join(f" {key}={_quoted(value)}" for key, value in _fields(record))
        line = f"{time.replace('+00:00', 'Z')} {record.levelname:<7} {record.name}: {text.translate(_CONTROL)}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return redact_url(line)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        body: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for key, value in _fields(record):
            body.setdefault(key, value)
        if record.exc_info:
            body["exception"] = self.formatException(record.exc_info)
        return redact_url(orjson.dumps(body, default=str, option=orjson.OPT_NON_STR_KEYS).decode())


class _Handler(logging.StreamHandler[TextIO]):
    """Ours, so that setting up again replaces it and nobody else's. Writes to what stderr is at that moment."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)


def setup_logging(level: str = "info", format: LogFormat = "text") -> None:  # noqa: A002 - the word of the setting
    """Send the process's logs to stderr; may be called again. Raises ConfigError for an unknown level or format."""
    if level.lower() not in LEVELS:
        raise ConfigError(f"log level {level!r}: must be one of {', '.join(LEVELS)}")
    if format not in ("text", "json"):
        raise ConfigError(f"log format {format!r}: must be text or json")
    handler = _Handler()
    handler.setFormatter(_JsonFormatter() if format == "json" else _TextFormatter())
    root = logging.getLogger()
    for old in [it for it in root.handlers if isinstance(it, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    _tame_libraries(level)


def _tame_libraries(level: str) -> None:
    # Requests are counted in the metrics; a line for each would drown what matters.
    logging.getLogger("uvicorn.access").disabled = True
    for name in ("uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        # Its start and stop messages are ours to tell.
        logger.setLevel("DEBUG" if level.lower() == "debug" else "WARNING")
    for name in ("httpx2", "httpcore2", "urllib3", "docker", "asyncio", "websockets"):
        logging.getLogger(name).setLevel("WARNING")


def _quoted(value: Any) -> str:
    text = str(value)
    return text if text and not any(char in text for char in ' "=') else orjson.dumps(text).decode()
