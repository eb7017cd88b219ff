"""What a line of a run's log looks like: masked, cut to size, encoded."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

import orjson

from conveyor_runtime.security.redaction import Redactor

#: Characters of one stored line; longer text is split.
_MAX_LINE = 16 * 1024

#: Characters of a label, and labels of a line; more is cut, as a line must fit into a message.
_MAX_LABEL = 1000
_MOST_LABELS = 50


class Lines:
    """Makes the lines of one attempt: `named` and `place` are part of each."""

    def __init__(self, named: Mapping[str, object], place: Mapping[str, object]) -> None:
        self._named = named
        self._place = place
        self._redactor = Redactor()

    def redact(self, secret: str) -> None:
        """Mask `secret` from now on."""
        self._redactor.add(secret)

    def prepare(self, text: str, labels: Mapping[str, object]) -> tuple[Iterator[str], Mapping[str, str]]:
        """The lines that `text` makes, and the labels as they can be stored, both without secrets."""
        named = {
            _utf8(str(key))[:_MAX_LABEL]: _utf8(self._redactor.mask(str(value)))[:_MAX_LABEL]
            for key, value in list(labels.items())[:_MOST_LABELS]
        }
        return _pieces(_utf8(self._redactor.mask(text))), named

    def encode(self, text: str, level: str, stream: str, labels: Mapping[str, str], seq: int) -> bytes:
        """The line as it is stored, written now."""
        now = time.time_ns()
        seconds, fraction = divmod(now, 1_000_000_000)
        line: dict[str, object] = {
            **self._named,
            "timestamp": str(seconds),
            "message": text,
            "time": f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{fraction:09d}Z",
            "seq": seq,
            **self._place,
            "level": level,
        }
        if stream:
            line["stream"] = stream
        if labels:
            line["labels"] = labels
        return orjson.dumps(line)


def _utf8(text: str) -> str:
    """`text` without halves of characters, such as a file name that is no UTF-8 leaves behind."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _pieces(text: str) -> Iterator[str]:
    for line in text.split("\n") if "\n" in text else (text,):
        for start in range(0, max(len(line), 1), _MAX_LINE):
            yield line[start : start + _MAX_LINE]
