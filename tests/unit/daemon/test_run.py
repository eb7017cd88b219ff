"""What `up` and `serve` say of themselves."""

from __future__ import annotations

import json
import stat
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from conveyor_runtime.daemon import run
from conveyor_runtime.daemon.ready import told
from conveyor_runtime.daemon.up import Running
from conveyor_runtime.models import Instance


def _running(port: int) -> Running:
    return Running(f"http://127.0.0.1:{port}", "nats://u:p@127.0.0.1:1", "t", cast(Any, None))


def test_the_addresses_lie_in_the_data_directory_while_it_runs(tmp_path: Path) -> None:
    paths = (tmp_path / "data" / "ready.json", tmp_path / "asked.json")
    with told(_running(1).addresses, paths[0].parent, paths[1]):
        for path in paths:
            assert json.loads(path.read_text())["nats"] == "nats://u:p@127.0.0.1:1"
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not any(path.exists() for path in paths)


def test_the_file_of_another_server_stays(tmp_path: Path) -> None:
    path = tmp_path / "ready.json"
    with told(_running(1).addresses, tmp_path, None):
        path.write_text("another's")
    assert path.read_text() == "another's"


def test_a_folder_that_cannot_be_made_is_no_reason_to_stop(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with told(_running(1).addresses, tmp_path / "data", tmp_path / "asked.json"):
        assert (tmp_path / "asked.json").exists()


def test_a_file_that_was_asked_for_must_be_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), told(_running(1).addresses, tmp_path, tmp_path / "none" / "asked.json"):
        pass
    assert not list(tmp_path.iterdir())


def test_the_backend_is_that_of_the_newest_process_that_builds() -> None:
    def lease(id_: str, driver: str, node: str, second: int, **fields: Any) -> SimpleNamespace:
        at = datetime(2026, 1, 1, 0, 0, second, tzinfo=UTC)
        nodes = (node,)
        return SimpleNamespace(
            record=Instance(id=id_, driver=driver, nodes=nodes, started_at=at, renewed_at=at, **fields)
        )

    leases = [
        lease("1", "builder", "docker-x", 1),
        lease("2", "builder", "native-x", 2),
        lease("3", "builder", "docker-x", 3, ended=True),
        lease("4", "greeter", "host-x", 4),
        lease("5", "elsewhere", "docker-x", 5),
    ]
    view = SimpleNamespace(instances=lambda: leases)
    control = cast(Any, SimpleNamespace(state=SimpleNamespace(view=view)))
    children = cast(Any, tuple(SimpleNamespace(name=name) for name in ("builder", "greeter")))
    assert run._backend(Running("", "", "", control, children)) == "native"
    assert run._backend(Running("", "", "", control, ())) == ""
