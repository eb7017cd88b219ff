"""What `up` and `serve` say of themselves."""

from __future__ import annotations

import json
import stat
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from conveyor_runtime.daemon import run
from conveyor_runtime.daemon.up import Running
from conveyor_runtime.models import Instance


def _running(port: int) -> Running:
    return Running(f"http://127.0.0.1:{port}", "nats://u:p@127.0.0.1:1", "t", cast(Any, None))


def test_the_addresses_lie_in_the_data_directory_while_it_runs(tmp_path: Path) -> None:
    path = tmp_path / "data" / "ready.json"
    with run._told_in(path.parent, _running(1)):
        assert json.loads(path.read_text())["nats"] == "nats://u:p@127.0.0.1:1"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


def test_the_file_of_another_server_stays(tmp_path: Path) -> None:
    path = tmp_path / "ready.json"
    with run._told_in(tmp_path, _running(1)):
        _running(2).write(path)
    assert json.loads(path.read_text())["api"] == "http://127.0.0.1:2"


def test_a_folder_that_cannot_be_made_is_no_reason_to_stop(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with run._told_in(tmp_path / "data", _running(1)):
        pass


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
