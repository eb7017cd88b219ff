"""Files of resources, pipelines and definitions: YAML or JSON, several in one, every complaint with line and column."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from conveyor_runtime.cli.errors import CliError, ExitCode

__all__ = ["Document", "Kind", "invalid", "read_documents", "read_mapping"]

MAX_BYTES = 16 * 1024 * 1024

#: Members of which each document has one.
_TELLING = {"spec", "schema", "steps"}

Kind = str
"""`definition`, `pipeline` or `resource`."""


@dataclass(frozen=True)
class Document:
    """One document of a file. `positions` has the line and column of what each JSON pointer names."""

    value: Any
    source: str
    positions: dict[str, tuple[int, int]] = field(default_factory=dict, repr=False)

    @property
    def kind(self) -> Kind:
        """What it is, by its members: a `schema` makes a definition, `steps` a pipeline, `spec` a resource."""
        if "spec" not in self.value:
            if "schema" in self.value:
                return "definition"
            if "steps" in self.value:
                return "pipeline"
        return "resource"

    @property
    def title(self) -> str:
        """How to speak of it: type and name."""
        kind = self.value.get("resource") or "resource" if self.kind == "resource" else self.kind
        return f"{kind}/{self.value.get('name') or '(no name)'}"

    def locate(self, pointer: str) -> str:
        """`file:line:column` of what `pointer` names, or of the nearest thing around it that is there."""
        while pointer and pointer not in self.positions:
            pointer = pointer.rpartition("/")[0]
        line, column = self.positions.get(pointer, (0, 0))
        return f"{self.source}:{line}:{column}" if line else self.source

    def find(self, pointer: str) -> Any:
        """What `pointer` names; None if there is nothing."""
        found = self.value
        for part in pointer.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict):
                found = found.get(key)
            elif isinstance(found, list) and key.isdecimal() and int(key) < len(found):
                found = found[int(key)]
            else:
                return None
        return found


def invalid(where: str, what: str) -> CliError:
    """The error for a document that cannot be taken."""
    return CliError(where, what, code=ExitCode.USAGE)


def read_documents(path: str) -> list[Document]:
    """The documents of a file, or of stdin for `-`; a list counts as its items. Raises CliError."""
    source, text = _read(path)
    found = []
    for document in _parse(text, source):
        items = document.value if isinstance(document.value, list) else None
        if items is None:
            found.append(document)
            continue
        for number, item in enumerate(items):
            prefix = f"/{number}"
            inside = {
                key[len(prefix) :]: at for key, at in document.positions.items() if f"{key}/".startswith(f"{prefix}/")
            }
            found.append(Document(item, source, inside))
    for document in found:
        _check_shape(document)
    if not found:
        raise invalid(source, "there is no document in it; a resource has the members resource, name and spec")
    return found


def read_mapping(path: str) -> Document:
    """The one document of a settings file, which must be a mapping. Raises CliError."""
    source, text = _read(path)
    documents = list(_parse(text, source))
    if len(documents) != 1 or not isinstance(documents[0].value, dict):
        raise invalid(source, "one mapping is needed here, nothing else")
    return documents[0]


def _check_shape(document: Document) -> None:
    value = document.value
    if not isinstance(value, dict):
        raise invalid(document.locate(""), f"a document must be a mapping, not {_name_of(value)}")
    if not _TELLING & set(value):
        what = "it is no resource (which has `resource` and `spec`), no pipeline (`steps`) and no definition (`schema`)"
        close = next(((key, *found) for key in value if (found := get_close_matches(key, _TELLING, 1))), None)
        where = document.locate(f"/{close[0]}" if close else "")
        raise invalid(where, what + (f"; is `{close[0]}` meant to be `{close[1]}`?" if close else ""))
    needed = ("resource", "name") if document.kind == "resource" else ("name",)
    for member in needed:
        if not isinstance(value.get(member), str) or not value[member]:
            raise invalid(document.locate(f"/{member}"), f"a {document.kind} needs a `{member}`, a text")


def _read(path: str) -> tuple[str, str]:
    if path == "-":
        source, data = "stdin", sys.stdin.buffer.read(MAX_BYTES + 1)
    else:
        source = path
        try:
            with Path(path).open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise invalid(path, f"{error.strerror or error}; give a file, or - for stdin") from None
    if len(data) > MAX_BYTES:
        raise invalid(source, f"it is larger than {MAX_BYTES >> 20} MiB, more than any document may be")
    try:
        return source, data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        column = error.start - (before.rfind(b"\n") + 1) + 1
        raise invalid(f"{source}:{before.count(10) + 1}:{column}", "it is not UTF-8 text") from None


def _parse(text: str, source: str) -> Iterator[Document]:
    # JSON as JSON, so that its errors are about JSON; whatever else begins with a bracket may still be flow-style YAML.
    if text.lstrip()[:1] in ("{", "[") or source.endswith(".json"):
        try:
            documents = list(_parse_json(text, source))
        except json.JSONDecodeError as error:
            if source.endswith(".json") or re.match(r'\s*(\{\s*"|\[\s*[{"])', text):
                raise invalid(f"{source}:{error.lineno}:{error.colno}", f"this is no JSON: {error.msg}") from None
        else:
            return iter(documents)
    from conveyor_runtime.cli.yaml_positions import parse_yaml

    return (Document(value, source, positions) for value, positions in parse_yaml(text, source))


def _parse_json(text: str, source: str) -> Iterator[Document]:
    from conveyor_runtime.cli.yaml_positions import positions_of_json

    def no_constant(name: str) -> Any:
        raise invalid(source, f"{name} is no JSON number")

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) != len(pairs):
            names = [name for name, _ in pairs]
            raise invalid(source, f"the member {next(it for it in names if names.count(it) > 1)!r} comes twice")
        return members

    decoder = json.JSONDecoder(parse_constant=no_constant, object_pairs_hook=no_duplicates)
    end = 0
    while rest := re.compile(r"\s*\S").match(text, end):
        start = rest.end() - 1
        value, end = decoder.raw_decode(text, start)
        yield Document(value, source, positions_of_json(text[start:end], text.count("\n", 0, start)))


def _name_of(value: object) -> str:
    if value is None:
        return "empty"
    return {list: "a list", str: "a text", bool: "true or false"}.get(type(value), "a number")
