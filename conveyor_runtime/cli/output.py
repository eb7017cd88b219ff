"""Data on stdout: tables, JSON, YAML, names. Colour and boxes only for people, that is on a terminal."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

from conveyor_runtime.cli.options import Format

if TYPE_CHECKING:
    from pydantic import BaseModel

__all__ = ["Column", "age", "between", "clean", "colour", "emit", "has_colour", "plain", "print_table", "status_colour"]


#: Between two columns.
_GAP = 3
#: What a last column needs at least to be read when it is folded.
_LAST = 24


@dataclass(frozen=True)
class Column:
    """A column of a table: its title and how to get its cell from a row's dict. A terminal that is too narrow for all
    columns does without those that may be `spared`."""

    title: str
    cell: Callable[[dict[str, Any]], str]
    spared: bool = False


def plain(model: BaseModel, *without: str) -> dict[str, Any]:
    """A model as plain data, under its names on the wire."""
    data = model.model_dump(mode="json", by_alias=True)
    return {key: value for key, value in data.items() if key not in without}


def emit(
    data: dict[str, Any] | list[dict[str, Any]],
    output: Format,
    columns: Sequence[Column],
    name: Callable[[dict[str, Any]], str],
) -> None:
    """Print one thing or a list of them as asked. `name` is what `-o name` prints of each."""
    rows = data if isinstance(data, list) else [data]
    if output is Format.JSON:
        print(json.dumps(data, indent=2, ensure_ascii=False))
    elif output is Format.YAML:
        print_yaml(data)
    elif output is Format.NAME:
        for row in rows:
            print(name(row))
    else:
        print_table(columns, rows)


def print_yaml(data: Any) -> None:
    """YAML that `apply -f -` reads again."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.dump(_blocks(data), sys.stdout)


#: What a block would not give back as it was: spaces at line ends, an indented beginning, other kinds of line ends.
_NO_BLOCK = re.compile(r"[^\S\n]\n|\A\s|[^\n\t -~\xa0-\u2027\u202a-\ud7ff]")


def _blocks(data: Any) -> Any:
    """The same with every text of several lines as a block, which is how people write scripts."""
    from ruamel.yaml.scalarstring import LiteralScalarString

    if isinstance(data, dict):
        return {key: _blocks(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_blocks(value) for value in data]
    if isinstance(data, str) and "\n" in data and not _NO_BLOCK.search(data):
        return LiteralScalarString(data)
    return data


def print_table(columns: Sequence[Column], rows: Iterable[dict[str, Any]], file: TextIO | None = None) -> None:
    """A table: for a terminal fitted to its width, else aligned text that nothing cuts or wraps."""
    file = file or sys.stdout
    cells = [[clean(column.cell(row)).replace("\n", " ") for column in columns] for row in rows]
    lines = [[column.title for column in columns], *cells]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    if file.isatty():
        _print_fitted(columns, widths, cells, file)
        return
    for line in lines:
        text = (" " * _GAP).join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print(text.rstrip(), file=file)


def _print_fitted(
    columns: Sequence[Column], widths: Sequence[int], rows: Sequence[Sequence[str]], file: TextIO
) -> None:
    """The last column is folded into what the others leave of the terminal's width: those hold names to be copied."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=file, no_color=not has_colour(file), highlight=False)
    kept = _kept(columns, widths, console.width)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for index in kept:
        is_last = index == kept[-1]
        table.add_column(columns[index].title, overflow="fold" if is_last else "ellipsis", no_wrap=not is_last)
    for row in rows:
        table.add_row(*(Text(row[index], style=_RICH_STYLES.get(row[index], "")) for index in kept))
    console.print(table)


def _kept(columns: Sequence[Column], widths: Sequence[int], most: int) -> list[int]:
    """Which columns there is room for: all that may not be spared, and of the others the first ones."""
    kept = list(range(len(columns)))

    def needed() -> int:
        return sum(widths[index] + _GAP for index in kept[:-1]) + min(widths[kept[-1]], _LAST)

    for index in reversed(range(len(columns))):
        if columns[index].spared and needed() > most:
            kept.remove(index)
    return kept


# -- words ------------------------------------------------------------------------------------------------------


def age(moment: str | None, now: datetime | None = None) -> str:
    """How long ago, as one number: 12s, 5m, 3h, 2d."""
    if not moment:
        return "-"
    seconds = ((now or datetime.now(UTC)) - datetime.fromisoformat(moment)).total_seconds()
    for unit, length, most in (("s", 1, 120), ("m", 60, 7200), ("h", 3600, 172800)):
        if seconds < most:
            return f"{max(0, int(seconds // length))}{unit}"
    return f"{int(seconds // 86400)}d"


def between(start: str | None, end: str | None) -> str:
    """The time between two moments, for people; of what still goes on, until now."""
    if not start:
        return "-"
    last = datetime.fromisoformat(end) if end else datetime.now(UTC)
    seconds = max(0.0, (last - datetime.fromisoformat(start)).total_seconds())
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}h{minutes % 60:02}m{seconds:02}s" if minutes >= 60 else f"{minutes}m{seconds:02}s"


_CONTROL = re.compile(
    r"(\x1b\[[0-9;]*m)|\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|[\x00-\x08\x0b-\x1f\x7f]"
)


def clean(text: str, *, keep_colour: bool = False) -> str:
    """Text without what would move a terminal's cursor or change its state; colours may stay."""
    return _CONTROL.sub(lambda match: (match[1] or "") if keep_colour else "", text)


# -- colour -----------------------------------------------------------------------------------------------------

_GREEN, _RED, _YELLOW, _CYAN = "32", "31", "33", "36"
_STATUS_COLOURS = {
    "Succeeded": _GREEN,
    "Failed": _RED,
    "Error": _RED,
    "TimedOut": _RED,
    "Cancelled": _YELLOW,
    "Cancelling": _YELLOW,
    "Running": _CYAN,
}
_RICH_STYLES = {
    status: {_GREEN: "green", _RED: "red", _YELLOW: "yellow", _CYAN: "cyan"}[code]
    for status, code in _STATUS_COLOURS.items()
}


def has_colour(file: TextIO) -> bool:
    """Whether colour is wanted there: a terminal, and nobody said NO_COLOR."""
    return file.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def colour(text: str, code: str, file: TextIO) -> str:
    """`text` in a colour (an SGR code) where colour is wanted."""
    return f"\x1b[{code}m{text}\x1b[0m" if has_colour(file) else text


def status_colour(status: str, file: TextIO) -> str:
    """A status in its colour."""
    return colour(status, _STATUS_COLOURS.get(status, "0"), file)
