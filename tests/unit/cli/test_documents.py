"""Documents: what they hold, where each thing stands, and what is refused."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyor_runtime.cli.documents import Document, read_documents, read_mapping
from conveyor_runtime.cli.errors import CliError, ExitCode
from conveyor_runtime.cli.yaml_positions import parse_yaml

RESOURCE = "resource: thing\nname: x\nspec:\n  list:\n    - a\n    - b: {c/d: 1}\n"


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)

    def read(text: str, name: str = "f.yaml") -> list[Document]:
        Path(name).write_text(text)
        return read_documents(name)

    return read


def test_every_value_has_its_place(read: Any) -> None:
    [document] = read(RESOURCE)
    assert document.value["spec"] == {"list": ["a", {"b": {"c/d": 1}}]}
    assert document.locate("/name") == "f.yaml:2:7"
    assert document.locate("/spec/list/1/b/c~1d") == "f.yaml:6:16"
    assert document.locate("/spec/missing/deeper") == "f.yaml:4:3", "the nearest thing that is there"
    assert document.locate("") == "f.yaml:1:1"


def test_json_has_places_too(read: Any) -> None:
    text = json.dumps({"resource": "thing", "name": "x", "spec": {"a": [1, 2]}}, indent=2)
    [document] = read(text, "f.json")
    assert document.locate("/spec/a/1") == "f.json:7:7"
    first, second = read(f"{text}\n{text}")
    assert (first.locate("/name"), second.locate("/name")) == ("f.yaml:3:11", "f.yaml:13:11")
    tabs = text.replace("  ", "\t")
    [document] = read(tabs, "f.json")
    assert document.value["spec"] == {"a": [1, 2]}, "tabs are good JSON, whatever YAML thinks of them"


def test_a_misspelt_member_is_pointed_at(read: Any) -> None:
    with pytest.raises(CliError, match=r"f.yaml:3:9: it is no resource .*; is `stepps` meant to be `steps`\?"):
        read("name: x\nresource: y\nstepps: [{driver: a}]\n")


def test_a_list_counts_as_its_items(read: Any) -> None:
    items = "- resource: thing\n  name: x\n  spec: {}\n- name: y\n  resource: thing\n  steps: []\n"
    first, second = read(items)
    assert (first.kind, second.kind) == ("resource", "pipeline")
    assert second.locate("/steps") == "f.yaml:6:10"
    assert [it.locate("/name") for it in read(json.dumps([first.value] * 11))][10].startswith("f.yaml:1:")


def test_kinds_by_their_members(read: Any) -> None:
    texts = {
        "definition": "name: a\nschema: {}\n",
        "pipeline": "name: a\nresource: b\nsteps: []\n",
        "resource": "name: a\nresource: pipeline\nspec: {steps: []}\n",
    }
    for kind, text in texts.items():
        [document] = read(text)
        assert document.kind == kind
    assert [it.title for it in read("---\n".join(texts.values()))] == ["definition/a", "pipeline/a", "pipeline/a"]


def test_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbf" + RESOURCE.encode())))
    [document] = read_documents("-")
    assert document.locate("/name") == "stdin:2:7"


def test_anchors_and_merges(read: Any) -> None:
    spec = "spec:\n  base: &base {a: 1, b: 2}\n  own: {<<: *base, b: 3}\n  two: {<<: [*base, {c: 4}]}\n"
    [document] = read(f"resource: t\nname: x\n{spec}")
    assert document.value["spec"]["own"] == {"a": 1, "b": 3}
    assert document.value["spec"]["two"] == {"a": 1, "b": 2, "c": 4}
    assert document.locate("/spec/own/b") == "f.yaml:5:23"


def test_scalars_are_what_json_can_hold(read: Any) -> None:
    text = "resource: t\nname: x\nspec: {a: 2024-01-01, b: yes, c: 0o17, d: 1.5, e: ~, f: true, g: 007, h: '1'}\n"
    [document] = read(text)
    spec = document.value["spec"]
    assert spec == {"a": "2024-01-01", "b": "yes", "c": 15, "d": 1.5, "e": None, "f": True, "g": 7, "h": "1"}
    json.dumps(spec)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: b: c\n", "f.yaml:1:5: this is no YAML: mapping values are not allowed here"),
        ("a: *nowhere\n", "f.yaml:1:4: this is no YAML: found undefined alias 'nowhere'"),
        ("a: \x01\n", "f.yaml:1:4: this is no YAML: "),
        ("\n\na: [\n", "f.yaml:4:1: "),
        ("a: {b: .nan}\n", "f.yaml:1:8: .nan is no number"),
        ("? [a]\n: b\n", "f.yaml:1:3: a key must be a text"),
        ("a: !secret x\n", "f.yaml:1:4: the tag !secret has no meaning here"),
        ("a: {<<: 1}\n", "f.yaml:1:5: << merges mappings only"),
        ("- [a]\n", "f.yaml:1:3: a document must be a mapping, not a list"),
        ("---\n", "f.yaml: there is no document in it"),
        ('{"a": NaN}', "f.yaml: NaN is no JSON number"),
        ("spec: {}\nresource: 7\nname: x\n", "f.yaml:2:11: a resource needs a `resource`"),
    ],
)
def test_refusals_name_line_and_column(read: Any, text: str, expected: str) -> None:
    with pytest.raises(CliError) as caught:
        read(text)
    assert str(caught.value).startswith(expected)
    assert caught.value.code is ExitCode.USAGE


def test_a_document_nested_without_end(read: Any) -> None:
    with pytest.raises(CliError, match="more than 64 levels"):
        read("a: " + "[" * 80 + "]" * 80 + "\n")


def test_a_settings_file_is_one_mapping(tmp_path: Path) -> None:
    path = tmp_path / "defaults.yaml"
    path.write_text("ci-build: {image: x}\n")
    assert read_mapping(str(path)).value == {"ci-build": {"image": "x"}}
    path.write_text("a: 1\n---\nb: 2\n")
    with pytest.raises(CliError, match="one mapping is needed here"):
        read_mapping(str(path))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(codec="ascii", min_codepoint=32)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3),
    max_leaves=12,
)


@given(_JSON)
def test_json_read_as_yaml_is_the_same(value: Any) -> None:
    found = [it for it, _ in parse_yaml(json.dumps({"value": value}, indent=1), "f")]
    assert found == [{"value": value}]
