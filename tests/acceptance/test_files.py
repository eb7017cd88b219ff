"""What files are refused, where, and that nothing of them is stored; how data comes out again."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from conveyor_runtime.cli.app import run
from tests.acceptance.world import World, build

GOOD: dict[str, Any] = {"resource": "ci-build", "name": "x", "spec": {"repository": "file:///nowhere"}}

PAIRS = ("ab", "bc", "cd", "de", "ef", "fg")

#: A file, and what must be said about it.
MALFORMED: dict[str, tuple[Any, str]] = {
    "broken-json": ('{"resource": "ci-build",\n "name": }', "f:2:10: this is no JSON"),
    "json-cut-off": ('{"resource": "ci-build", "spec": {"a": [1, 2', "f:1:45: this is no JSON"),
    "broken-yaml": ("resource: ci-build\nname: x\nspec: {a: [1, 2\n", "f:4:1: this is no YAML"),
    "yaml-tab": ("resource: ci-build\nspec:\n\tname: x\n", "f:3:1: this is no YAML"),
    "yaml-twice": ("resource: ci-build\nname: x\nname: y\nspec: {}\n", "f:3:1: the key 'name' comes twice"),
    "json-twice": ('{"name": "x", "name": "y"}', "'name' comes twice"),
    "empty": ("", "there is no document in it"),
    "a-text": ("just words", "f:1:1: a document must be a mapping, not a text"),
    "no-members": ("hello: world\n", "f:1:1: it is no resource"),
    "no-name": ("resource: ci-build\nspec: {}\n", "f:1:1: a resource needs a `name`"),
    "name-of-wrong-type": ("resource: ci-build\nname: [x]\nspec: {}\n", "f:2:7: a resource needs a `name`"),
    "name-with-dot": ({**GOOD, "name": "a.b"}, "f:3:11: /name: must be 1 to 128 characters"),
    "name-with-star": ({**GOOD, "name": "a*"}, "must be 1 to 128"),
    "name-with-arrow": ({**GOOD, "name": ">"}, "must be 1 to 128"),
    "name-with-space": ({**GOOD, "name": "a b"}, "must be 1 to 128"),
    "name-with-slash": ({**GOOD, "name": "a/b"}, "must be 1 to 128"),
    "type-with-dot": ({**GOOD, "resource": "ci.build"}, "/resource: must be"),
    "unknown-type": ({**GOOD, "resource": "nothing"}, "there is no type nothing"),
    "unknown-pipeline": ({**GOOD, "pipeline": "nothing"}, "there is no pipeline named nothing"),
    "wrong-type": (
        "resource: ci-build\nname: x\nspec:\n  repository: r\n  commands: make\n",
        "f:5:13: /spec/commands: ",
    ),
    "wrong-item": (
        "resource: ci-build\nname: x\nspec:\n  repository: r\n  commands:\n    - make\n    - 7\n",
        "f:7:7: /spec/commands/1: ",
    ),
    "member-missing": ("resource: ci-build\nname: x\nspec:\n  ref: main\n", "f:4:3: /spec: "),
    "spec-is-a-list": ({**GOOD, "spec": [1]}, "/spec: must be an object"),
    "nul": ({**GOOD, "spec": {"repository": "a\0b"}}, "/spec/repository: holds a NUL character"),
    "not-utf-8": (b"name: \xff\n", "f:1:7: it is not UTF-8 text"),
    "not-a-number": ("resource: ci-build\nname: x\nspec: {depth: .inf}\n", "f:3:15: .inf is no number"),
    "foreign-tag": ("resource: ci-build\nname: x\nspec: !!python/name:os.system\n", "has no meaning here"),
    "aliases-without-end": ("a: &a [*a]\n", "f:"),
    "many-aliases": (
        "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
        + "".join(
            f"{n}: &{n} [{','.join(f'*{p}' for _ in range(10))}]\n" for p, n in zip("abcdef", "bcdefg", strict=True)
        ),
        "does an alias contain itself?",
    ),
    "large": ({**GOOD, "spec": {"repository": "r", "x": "y" * (2 << 20)}}, "larger than"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_file_is_refused_at_its_place(
    empty_world: World, case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command within this process: starting one for each of so many files would take most of the time."""
    world = empty_world
    content, expected = MALFORMED[case]
    if isinstance(content, bytes):
        (world.folder / "f").write_bytes(content)
    else:
        world.file("f", content)
    monkeypatch.chdir(world.folder)
    monkeypatch.setenv("CONVEYOR_API_URL", world.addresses["api"])
    monkeypatch.setenv("CONVEYOR_TOKEN", world.addresses["token"])
    monkeypatch.setattr(sys, "argv", ["conveyor", "apply", "-f", "f"])
    code = run()
    said = capsys.readouterr()
    assert code == 2, said.err
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert expected in said.err
    assert "Traceback" not in said.err
    assert len(said.err) < 2000
    assert [it["name"] for it in world.get("/resources")["items"]] == ["ci-build"], "the shipped pipeline only"
    assert world.get("/runs")["items"] == []


def test_some_of_several_documents_are_refused(empty_world: World) -> None:
    world = empty_world
    documents = (
        "name: one\nschema: {type: object}\n",
        "resource: one\nname: bad.name\nspec: {}\n",
        "name: two\nschema: {type: 7}\n",
    )
    text = "---\n".join(documents)
    done = world.run("apply", "-f", world.file("several.yaml", text))
    assert done.returncode == 2
    assert "definition/one   applied" in done.stdout
    assert "several.yaml:5:7: /name: must be" in done.stderr
    assert "several.yaml:9:16: /schema/type: " in done.stderr
    world.ok("delete", "definition", "one")
    assert world.json("get", "definitions", "-o", "json")


def test_there_is_no_such_file(empty_world: World) -> None:
    done = empty_world.run("apply", "-f", "nothing.yaml")
    assert done.returncode == 2
    assert done.stderr == "error: nothing.yaml: No such file or directory; give a file, or - for stdin\n"


def text_of(world: World, output: str) -> str:
    return world.ok("get", "ci-build/shown", "-o", output)


def test_what_comes_out_goes_in_again(world: World, repository: str) -> None:
    resource = build(repository, "echo one\necho two; sleep 333", name="shown", env=[{"name": "A", "value": "yes"}])
    assert world.ok("apply", "-f", "-", "-o", "name", stdin=json.dumps(resource)) == "ci-build/shown\n"
    for output in ("yaml", "json"):
        text = text_of(world, output)
        applied = json.loads(world.ok("apply", "-f", "-", "-o", "json", stdin=text))
        assert [(it["object"], it["outcome"]) for it in applied] == [("ci-build/shown", "unchanged")]
    assert "      echo one\n      echo two" in text_of(world, "yaml"), "scripts stay readable"
    everything = world.ok("get", "pipelines", "-o", "yaml")
    assert "applied (revision 1)" in world.ok("apply", "-f", "-", stdin=everything)
    assert world.ok("get", "resources", "-o", "name").split() == ["ci-build/shown", "pipeline/ci-build"]
    assert world.ok("get", "ci-build", "-o", "name") == "ci-build/shown\n"
    names = ["definition/ci-build", "definition/pipeline", "definition/task"]
    assert world.ok("get", "definitions", "-o", "name").split() == names
    [run] = world.ok("get", "runs", "-o", "name").split()
    follower = world.start("logs", "-f", run)
    follower.until("[build] two")
    table = world.ok("get", "runs").splitlines()
    assert table[0].split() == ["RUN", "RESOURCE", "EVENT", "STATUS", "STEPS", "AGE", "DURATION", "REASON"]
    assert table[1].split()[1:4] == ["ci-build/shown", "create", "Running"]
    described = world.ok("describe", "ci-build", "shown")
    assert run.removeprefix("run/") in described
    assert "echo two" in described
    assert world.ok("cancel", run, "--wait").endswith("is cancelled\n")
    assert world.json("describe", "run", run.removeprefix("run/"))["status"] == "Cancelled"
    refused = world.run("delete", "definition", "ci-build")
    assert refused.returncode == 1
    assert "definition/ci-build: definition ci-build is used by ci-build/shown; delete them first" in refused.stderr
    assert world.ok("delete", "-f", "-", "--wait", stdin=json.dumps(resource)) == "ci-build/shown deleted\n"
    assert "note: definition/task ships with" in world.run("delete", "definition", "task").stderr
    assert world.ok("get", "ci-build") == ""


def test_logs_in_their_forms(world: World, repository: str) -> None:
    resource = build(
        repository, "echo out; echo err >&2; printf '\\033[31mred\\033[0m\\n\\033[2Jgone\\n'", name="logged"
    )
    assert world.run("run", "-f", world.file("logged.json", resource), "--watch").returncode == 0
    text = world.ok("logs", "ci-build/logged")
    assert "[build] out" in text
    assert "\x1b" not in text, "no terminal, no escape sequences"
    assert world.ok("logs", "-f", "ci-build/logged") == text
    only = world.ok("logs", "ci-build/logged", "--step", "build").splitlines()
    assert sorted(only[-4:]) == ["err", "gone", "out", "red"]
    assert world.ok("logs", "ci-build/logged", "--step", "build", "--timestamps").splitlines()[-1][:2] == "20"
    lines = [json.loads(line) for line in world.ok("logs", "ci-build/logged", "-o", "json").splitlines()]
    assert {"stdout", "stderr"} <= {line["stream"] for line in lines if line["step"] == "build"}
    assert [line["id"] for line in lines] == sorted(line["id"] for line in lines)
    nothing = world.run("logs", "ci-build/logged", "--step", "bild")
    assert nothing.returncode == 1
    assert "its steps are start, clone, build, stop" in nothing.stderr
    assert world.run("logs", "no-such-run").returncode == 1


def test_run_in_a_machines_format(world: World, repository: str) -> None:
    file = world.file("machine.json", build(repository, "echo talk", name="machine"))
    done = world.run("run", "-f", file, "--watch", "-o", "json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["status"] == "Succeeded"
    assert "[build] talk" in done.stderr
    assert world.ok("run", "-f", file, "-o", "name").startswith("run/")
