"""Where a backend's files lie, and what is free there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from conveyor_runtime.orchestra.disk import disk_of
from conveyor_runtime.orchestra.mock import MockBackend
from conveyor_runtime.orchestra.native import NativeBackend


def test_the_disk_of_the_native_backend_is_that_of_its_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    disk, found = disk_of(NativeBackend(root)), shutil.disk_usage(tmp_path)
    assert disk is not None and disk.total == found.total
    assert disk.free == pytest.approx(found.free, rel=0.05)
    root.rmdir()
    other = NativeBackend(root)
    shutil.rmtree(root)
    assert disk_of(other) is None, "where it cannot be told, nothing is said"


def test_a_backend_without_files_has_none() -> None:
    assert disk_of(MockBackend()) is None
