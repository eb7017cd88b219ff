"""What `up` and `serve` say of themselves."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any, cast

from conveyor_runtime.daemon import run
from conveyor_runtime.daemon.up import Running


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
