"""YAML as what JSON can hold, together with the place of every value.

The nodes are walked by hand: a loader would give values without places, dates where the wire knows none, and would
follow a hundred nested aliases until memory is full.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from conveyor_runtime.cli.errors import CliError, ExitCode

__all__ = ["parse_yaml", "positions_of_json"]

Positions = dict[str, tuple[int, int]]

_TAG = "tag:yaml.org,2002:"
_MAX_DEPTH = 64
_MAX_VALUES = 200_000


def parse_yaml(text: str, source: str) -> Iterator[tuple[Any, Positions]]:
    """Each document and its positions; empty ones are left out. Raises CliError with `source`, line and column."""
    yaml = YAML(typ="safe", pure=True)
    try:
        for node in yaml.compose_all(text):
            walk = _Walk(yaml, source)
            value = walk.value(node, "", 1)
            if value is not None:
                yield value, walk.positions
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        context = f"{error.context}: " if error.context else ""
        raise _error(where, f"this is no YAML: {context}{error.problem}") from None
    except YAMLError as error:
        position = getattr(error, "position", None)  # the reader, which checks characters, knows no lines
        where = source
        if isinstance(position, int):
            where = f"{source}:{text.count(chr(10), 0, position) + 1}:{position - text.rfind(chr(10), 0, position)}"
        reason = getattr(error, "reason", None) or str(error)
        raise _error(where, f"this is no YAML: {reason}") from None


def positions_of_json(text: str, lines_before: int) -> Positions:
    """Where the values of a JSON document are, if it happens to be YAML as well; none are known otherwise."""
    yaml = YAML(typ="safe", pure=True)
    try:
        walk = _Walk(yaml, "")
        walk.value(yaml.compose(text), "", 1)
    except (YAMLError, CliError):
        return {}
    return {pointer: (line + lines_before, column) for pointer, (line, column) in walk.positions.items()}


class _Walk:
    """Turns nodes into values and notes where each stands."""

    def __init__(self, yaml: Any, source: str) -> None:
        self._yaml = yaml
        self._source = source
        self._seen = 0
        self.positions: Positions = {}

    def value(self, node: Node, pointer: str, depth: int) -> Any:
        self.positions.setdefault(pointer, (node.start_mark.line + 1, node.start_mark.column + 1))
        self._seen += 1
        if depth > _MAX_DEPTH or self._seen > _MAX_VALUES:
            limit = f"{_MAX_DEPTH} levels" if depth > _MAX_DEPTH else f"{_MAX_VALUES} values"
            raise self._at(node, f"more than {limit}; does an alias contain itself?")
        if isinstance(node, ScalarNode):
            return self._scalar(node)
        if isinstance(node, SequenceNode):
            self._expect(node, "seq")
            return [self.value(item, f"{pointer}/{index}", depth + 1) for index, item in enumerate(node.value)]
        assert isinstance(node, MappingNode)
        self._expect(node, "map")
        return self._mapping(node, pointer, depth)

    def _mapping(self, node: MappingNode, pointer: str, depth: int) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == f"{_TAG}merge":
                for source in value_node.value if isinstance(value_node, SequenceNode) else [value_node]:
                    if not isinstance(source, MappingNode):
                        raise self._at(key_node, "<< merges mappings only")
                    for key, value in self.value(source, pointer, depth + 1).items():
                        merged.setdefault(key, value)
                continue
            key = self._key(key_node)
            if key in own:
                raise self._at(key_node, f"the key {key!r} comes twice")
            child = f"{pointer}/{key.replace('~', '~0').replace('/', '~1')}"
            self.positions[child] = (value_node.start_mark.line + 1, value_node.start_mark.column + 1)
            own[key] = self.value(value_node, child, depth + 1)
        return {**merged, **own}

    def _key(self, node: Node) -> str:
        if not isinstance(node, ScalarNode):
            raise self._at(node, "a key must be a text")
        return str(node.value)

    def _scalar(self, node: ScalarNode) -> Any:
        kind = str(node.tag).removeprefix(_TAG)
        make = self._yaml.constructor
        try:
            if kind == "int":
                return int(make.construct_yaml_int(node))
            if kind == "float":
                number = float(make.construct_yaml_float(node))
                if not math.isfinite(number):
                    raise self._at(node, f"{node.value} is no number that JSON knows")
                return number
            if kind == "bool":
                return bool(make.construct_yaml_bool(node))
        except ValueError:
            raise self._at(node, f"{node.value} is no {kind}") from None
        if kind == "null":
            return None
        if kind in ("str", "timestamp"):  # a date stays the text it is written as
            return str(node.value)
        raise self._at(node, f"the tag {node.tag} has no meaning here")

    def _expect(self, node: Node, kind: str) -> None:
        if node.tag != f"{_TAG}{kind}":
            raise self._at(node, f"the tag {node.tag} has no meaning here")

    def _at(self, node: Node, what: str) -> CliError:
        return _error(f"{self._source}:{node.start_mark.line + 1}:{node.start_mark.column + 1}", what)


def _error(where: str, what: str) -> CliError:
    return CliError(where, what, code=ExitCode.USAGE)
