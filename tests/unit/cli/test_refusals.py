"""What the server refuses, said for those who write the files and type the commands."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import pipelines
from conveyor_runtime.cli import doctor, resources
from conveyor_runtime.cli.app import app
from conveyor_runtime.cli.delete import _delete
from conveyor_runtime.cli.documents import read_documents
from conveyor_runtime.cli.errors import CliError, ExitCode
from conveyor_runtime.cli.noun import find_noun, unknown_type
from conveyor_runtime.cli.resources import ORDER, apply_document
from conveyor_runtime.cli.targets import find_run
from conveyor_runtime.client import Client, NotFoundError
from tests.unit.api.world import World


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with World() as world, Client("http://api", transport=world.http._transport) as client:
        await client.apply_definition({**pipelines.definition("ci-build"), "pipeline": ""})
        yield client


async def _refusal(client: Client, folder: Path, text: str) -> CliError:
    file = folder / "f.yaml"
    file.write_text(text)
    [document] = read_documents(str(file))
    with pytest.raises(CliError) as caught:
        await apply_document(client, document)
    assert caught.value.code is ExitCode.USAGE
    return caught.value


async def test_a_colon_that_made_a_mapping(client: Client, tmp_path: Path) -> None:
    text = "resource: ci-build\nname: a\nspec:\n  repository: x\n  commands:\n    - echo hi: there\n"
    [line] = (await _refusal(client, tmp_path, text)).lines
    assert "f.yaml:6:7: /spec/commands/0: " in line
    assert line.endswith("quote it: the colon made it a mapping")


async def test_a_timeout_that_is_none(client: Client, tmp_path: Path) -> None:
    text = "resource: ci-build\nname: a\nspec:\n  repository: x\n  timeout: soon\n"
    [line] = (await _refusal(client, tmp_path, text)).lines
    assert line.endswith("'soon' is no timeout; give a duration such as 90s, 5m or a number of seconds")


async def test_a_driver_nobody_knows_is_warned_of(client: Client, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("name: p\nresource: ci-build\nsteps: [{id: build, driver: biulder}]\n")
    [document] = read_documents(str(file))
    await apply_document(client, document)
    said = "warning: pipeline/p: driver biulder has never registered; step build will wait for it\n"
    assert capsys.readouterr().err == said


async def test_the_samples_need_nothing_else(client: Client) -> None:
    await client.apply_pipeline(pipelines.pipeline("ci-build"))
    await client.apply_definition(pipelines.definition("ci-build"))
    for path in Path(pipelines.__file__).with_name("samples").iterdir():
        *others, resource = sorted(read_documents(str(path)), key=lambda it: ORDER[it.kind])
        for document in others:
            await apply_document(client, document)
        applied = await apply_document(client, resource)
        assert [step.id for step in (await client.get_run(applied["run"])).steps] == ["start", "clone", "build", "stop"]


@pytest.mark.parametrize(
    "text", ["name: a\nresource: ci-biuld\nspec: {}\n", "name: a\nresource: ci-biuld\nsteps: [{driver: d}]\n"]
)
async def test_an_unknown_type_is_pointed_at(client: Client, tmp_path: Path, text: str) -> None:
    told = str(await _refusal(client, tmp_path, text))
    assert "f.yaml:2:11: " in told
    assert told.endswith("there is no type ci-biuld (did you mean ci-build?); there are ci-build")


async def test_nouns_and_types_are_known(client: Client) -> None:
    assert await unknown_type(client, "Runs") == ""
    assert await unknown_type(client, "ci-build") == ""
    assert await unknown_type(client, "foo") == "there is no type foo; there are ci-build"


async def test_a_run_is_found_by_its_resource(client: Client) -> None:
    run_id = (await client.apply({"resource": "ci-build", "name": "hello", "spec": {"repository": "x"}})).run_id
    for target in ((run_id, ""), ("run", run_id), (f"run/{run_id}", ""), ("ci-build", "hello"), ("ci-build/hello", "")):
        assert await find_run(client, *target) == run_id
    with pytest.raises(CliError, match=r"there is no run hello: did you mean ci-build/hello\?"):
        await find_run(client, "hello", "")
    with pytest.raises(NotFoundError):
        await find_run(client, "nothing", "")
    assert await resources._unknown(client, "hello") == "there is no type hello; did you mean ci-build/hello?"
    with pytest.raises(typer.BadParameter, match="ci-build/hello has a name already, and there is world"):
        await find_run(client, "ci-build/hello", "world")


async def test_a_delete_says_which_driver_it_waits_for(capsys: Any) -> None:
    async with World() as world, Client("http://api", transport=world.http._transport) as client:
        await world.define("app")
        await world.register("cleaner", "app", events=("create", "delete"))
        await client.apply({"resource": "app", "name": "a", "spec": {}})
        assert await _delete(client, find_noun("app"), "a", wait=False, force=False) == ExitCode.SUCCESS
        said = capsys.readouterr().err
        assert "it waits for cleaner, of which no process is running" in said
        assert "delete app/a --force" in said
        await _delete(client, find_noun("app"), "a", wait=False, force=True)
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize("arguments", [["get", "foo"], ["get", "foo", "bar"], ["describe", "foo/bar"]])
def test_get_of_an_unknown_type_is_an_error(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(ctx: Any, api_url: Any, token: Any, question: Any) -> Any:
        import asyncio

        async def main() -> Any:
            async with World() as world, Client("http://api", transport=world.http._transport) as client:
                await client.apply_definition({"name": "app"})
                return await question(client)

        return asyncio.run(main())

    monkeypatch.setattr("conveyor_runtime.cli.resources.ask", ask)
    found = CliRunner().invoke(app, arguments)
    assert isinstance(found.exception, CliError)
    assert found.exception.code is ExitCode.FAILED
    told = "there is no type foo; there are app, besides resources, runs, definitions, pipelines, drivers"
    assert str(found.exception) == told
    assert CliRunner().invoke(app, ["get", "app"]).stderr == "no app here\n"


def test_get_without_a_type_lists_them() -> None:
    found = CliRunner().invoke(app, ["get"])
    assert found.exit_code == ExitCode.USAGE
    assert "resources, runs, definitions, pipelines, drivers" in " ".join(found.stderr.split())


def test_the_port_of_the_api_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(doctor, "DEFAULT_API_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        assert doctor._port().verdict == "warn"
    assert doctor._port().verdict == "ok"


def test_the_doctor_warns_of_a_qemu_that_lacks_its_program_or_its_guest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CONVEYOR_QEMU_IMAGES", str(tmp_path / "images"))
    finding = doctor._qemu()
    assert (finding.verdict, "there is no qemu-system" in finding.found) == ("warn", True)
    program = tmp_path / "qemu-system-x86_64"
    program.write_text("#!/bin/sh\necho QEMU emulator version 7\n")
    program.chmod(0o755)
    finding = doctor._qemu()
    assert (finding.verdict, "image build qemu" in finding.mend) == ("warn", True)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "image.json").write_text('{"key": "k"}')
    finding = doctor._qemu()
    assert (finding.verdict, finding.found.startswith("QEMU emulator version 7 at ")) == ("ok", True)
