"""Conveyor's tutorial, its JSON unchanged, worked by the shipped drivers with the shipped defaults."""

from __future__ import annotations

import json
from pathlib import Path

import httpx2

from conveyor_runtime.client import Client
from tests.support.processes import make_repository, runtime

DEFINITION = {
    "name": "flutter-builder",
    "description": "Builds Flutter applications",
    "schema": {
        "type": "object",
        "properties": {
            "repository": {"type": "string"},
            "branch": {"type": "string"},
            "build_type": {"type": "string", "enum": ["apk", "ios"]},
        },
        "required": ["repository"],
    },
}
PIPELINE = {
    "name": "flutter-pipeline",
    "resource": "flutter-builder",
    "description": "Start a container, clone, build, stop",
    "steps": [
        {"id": "1", "name": "container-start", "driver": "container-start"},
        {"id": "2", "name": "git-cloner", "driver": "git-cloner"},
        {"id": "3", "name": "builder", "driver": "builder"},
        {"id": "4", "name": "container-stop", "driver": "container-stop"},
    ],
}
#: Stands in for the SDK's command: it notes how it was called.
FLUTTER = """#!/bin/sh
echo "flutter $*"
case "$1" in build) mkdir -p build && echo apk > build/app-release.apk ;; esac
"""


async def test_the_tutorial_as_it_is_written(tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "flutter").write_text(FLUTTER)
    (tools / "flutter").chmod(0o755)
    defaults = tmp_path / "defaults.json"
    defaults.write_text(json.dumps({"flutter-builder": {"env": {"PATH": f"{tools}:/usr/bin:/bin"}}}))
    repository = make_repository(tmp_path / "repository")
    resource = {
        "name": "my-app",
        "resource": "flutter-builder",
        "pipeline": "flutter-pipeline",
        "spec": {"repository": repository, "branch": "main", "build_type": "apk"},
    }
    async with runtime(tmp_path) as running, httpx2.AsyncClient(base_url=running.api_url) as http:
        for name in ("container-start", "git-cloner", "builder", "container-stop"):
            running.driver(name, "--defaults", str(defaults))
        assert (await http.post("/resource-definitions/", json=DEFINITION)).status_code == 201
        assert (await http.post("/pipelines/", json=PIPELINE)).status_code == 201
        answer = await http.post("/resources/", json=resource)
        assert answer.status_code == 201
        assert set(answer.json()) >= {"name", "runid", "message", "version"}
        async with Client(running.api_url) as client:
            run = await client.wait_run(answer.json()["runid"])
            lines = [line.message for line in await client.logs(run.run_id) if line.stream == "stdout"]
            shown = await client.get_resource("flutter-builder", "my-app")
        assert run.status == "Succeeded", running.logs()
        assert lines == ["flutter pub get", "flutter build apk --release"]
        reported = json.loads(shown.metadata["driverresults.container-start"])
        assert reported["data"]["containerID"]
        assert running.left() == []
