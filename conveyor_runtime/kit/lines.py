"""Cut a stream of bytes into lines of text, whatever the bytes are."""

from __future__ import annotations

import codecs

__all__ = ["LineSplitter"]

_MAX_BYTES = 16 * 1024


class LineSplitter:
    """Incremental: feed chunks of any size, get the lines they complete.

    Invalid UTF-8 becomes U+FFFD, also when a character is split between chunks. A line ends at `\\n` or `\\r\\n`.
    A lone `\\r` starts its line anew, so a progress bar leaves only its last state. A line longer than `max_bytes`
    of UTF-8 is passed on in pieces of at most that size.
    """

    def __init__(self, max_bytes: int = _MAX_BYTES) -> None:
        if max_bytes < 4:
            raise ValueError("max_bytes must hold one character: at least 4")
        self._max = max_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._line = ""
        # A "\r" at the end of what we have says nothing yet: "\n" may follow, or the next state of a progress bar.
        self._returned = False

    def feed(self, data: bytes) -> list[str]:
        """The lines that `data` completes, without their ends."""
        return self._take(self._decoder.decode(data))

    def flush(self) -> list[str]:
        """The unterminated rest, if there is any. Call once, at the end of the stream."""
        lines = self._take(self._decoder.decode(b"", final=True))
        if self._line:
            lines.append(self._line)
        self._line, self._returned = "", False
        return lines

    def _take(self, text: str) -> list[str]:
        done: list[str] = []
        pieces = text.split("\n")
        for index, piece in enumerate(pieces):
            self._extend(piece, done)
            if index < len(pieces) - 1:
                done.append(self._line)
                self._line, self._returned = "", False
        return done

    def _extend(self, piece: str, done: list[str]) -> None:
        """Add text without newlines to the current line."""
        for index, part in enumerate(piece.split("\r")):
            if index:
                self._returned = True
            if not part:
                continue
            if self._returned:
                self._line, self._returned = "", False
            self._line += part
            self._line = self._split_long(self._line, done)

    def _split_long(self, line: str, done: list[str]) -> str:
        # A character takes at most 4 bytes, so most lines need not be encoded to be found short enough.
        if len(line) * 4 <= self._max:
            return line
        encoded = line.encode()
        start = 0
        while len(encoded) - start > self._max:
            end = start + self._max
            while encoded[end] & 0xC0 == 0x80:  # never inside a character
                end -= 1
            done.append(encoded[start:end].decode())
            start = end
        return encoded[start:].decode() if start else line
