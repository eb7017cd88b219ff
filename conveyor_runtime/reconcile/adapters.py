"""What makes the log of an attempt a text file, and a handler of the standard library's logging."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

#: Characters kept while a line has no end.
_LONGEST_REST = 64 * 1024


class LineWriter:
    """Enough of a text file: `write` keeps what has no line end yet, up to a limit; `close` gives it out."""

    def __init__(self, put: Callable[[str], None]) -> None:
        self._put = put
        self._rest = ""

    def write(self, text: str) -> int:
        """Log each complete line, and what becomes too long to wait for its end."""
        *lines, self._rest = (self._rest + text).split("\n")
        if len(self._rest) > _LONGEST_REST:
            # Between two words, or half a secret could pass unmasked.
            end = self._rest.rfind(" ") + 1 or len(self._rest)
            lines.append(self._rest[:end])
            self._rest = self._rest[end:]
        for line in lines:
            self._put(line)
        return len(text)

    def flush(self) -> None:
        """A line is given out when it is complete; there is nothing else to flush."""

    def close(self) -> None:
        """Log what has no line end."""
        if self._rest:
            self._put(self._rest)
            self._rest = ""


class LogHandler(logging.Handler):
    """Gives every record to `put`, as text, level, stream and labels."""

    def __init__(self, put: Callable[[str, str, str, Mapping[str, object]], None], level: int) -> None:
        super().__init__(level)
        self._put = put

    def createLock(self) -> None:  # noqa: N802 - the library's name
        """None: `put` is safe in threads, and one that waits in it must not make the loop wait for the lock."""
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        """Log the record."""
        name = {"CRITICAL": "error", "WARN": "warning"}.get(record.levelname, record.levelname.lower())
        level = name if name in ("debug", "info", "warning", "error") else "info"
        self._put(self.format(record), level, "", {"logger": record.name})
