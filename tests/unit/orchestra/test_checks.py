"""Tasks that make no sense, and tasks that ask for more than a backend keeps."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import pytest

from conveyor_runtime.errors import TerminalError
from conveyor_runtime.orchestra import HostMount, Limits, Mount, Port, RestartPolicy, Task, Tmpfs, Ulimit
from conveyor_runtime.orchestra.checks import Wish, check_host_mounts, check_task, mount_path, refuse, wishes

PLAIN = Task("x", command=("true",))
EVERYTHING = Task(
    "x",
    stdin=b"in",
    mounts=(Mount("a", "/a", read_only=True, size_bytes=1),),
    host_mounts=(HostMount("/etc", "/host"),),
    tmpfs=(Tmpfs("/t"),),
    limits=Limits(1, 1, 1, 1),
    ulimits=(Ulimit("nofile", 1, 1),),
    user="nobody",
    privileged=True,
    network="mine",
    ports=(Port(80),),
    publish_all=True,
    restart=RestartPolicy("always"),
    timeout=1,
)


def test_every_wish_is_seen_and_refused() -> None:
    assert wishes(PLAIN) == set()
    found = wishes(EVERYTHING)
    for network in ("none", "bridge", "host"):
        found |= wishes(replace(PLAIN, network=network))
    assert found == set(get_args(Wish))
    with pytest.raises(TerminalError) as refusal:
        refuse(EVERYTHING, "toy", {"user"})
    assert all(wish in str(refusal.value) for wish in wishes(EVERYTHING) - {"user"})
    assert "user" not in str(refusal.value)
    refuse(EVERYTHING, "toy", wishes(EVERYTHING))
    refuse(PLAIN, "toy", ())


def test_no_field_of_a_task_is_forgotten() -> None:
    """A new field must become a wish, or be named here as one that every backend keeps."""
    kept_by_all = {"id", "image", "command", "env", "workdir", "grace", "pull", "warm"}
    asked = {field.name for field in fields(Task) if getattr(EVERYTHING, field.name) != getattr(PLAIN, field.name)}
    assert asked | kept_by_all == {field.name for field in fields(Task)}


@pytest.mark.parametrize(
    "nonsense",
    [
        {"id": "../x"},
        {"command": ("a\0",)},
        {"env": {"A=B": "c"}},
        {"env": {"": "c"}},
        {"env": {"A": "\0"}},
        {"workdir": "here"},
        {"mounts": (Mount("../x", "/a"),)},
        {"mounts": (Mount("a", "../a"),)},
        {"mounts": (Mount("a", "."),)},
        {"mounts": (Mount("a", "/"),)},
        {"mounts": (Mount("a", "a"), Mount("b", "/workspace/x/../a"))},
        {"mounts": (Mount("a", "/t"),), "tmpfs": (Tmpfs("/t/"),)},
        {"mounts": (Mount("a", "/t", size_bytes=-1),)},
        {"tmpfs": (Tmpfs("t"),)},
        {"ports": (Port(0),)},
        {"ports": (Port(80, 70000),)},
        {"ulimits": (Ulimit("nofile", -2, 1),)},
        {"restart": RestartPolicy("no", 3)},
        {"restart": RestartPolicy("on-failure", -1)},
        {"restart": RestartPolicy("always"), "timeout": 1.0},
        {"timeout": 0.0},
    ],
)
def test_nonsense_is_refused(nonsense: dict[str, Any]) -> None:
    with pytest.raises(TerminalError):
        check_task(replace(PLAIN, **nonsense))


def test_sense_is_not() -> None:
    check_task(replace(EVERYTHING, restart=RestartPolicy("on-failure", 3)))
    assert mount_path(PLAIN, "a/../b") == "/workspace/b"
    assert mount_path(PLAIN, "/b/") == "/b"


def test_host_paths_are_the_operators(tmp_path: Path) -> None:
    (tmp_path / "open/below").mkdir(parents=True)
    (tmp_path / "openly").mkdir()
    (tmp_path / "open/out").symlink_to(tmp_path / "openly")
    (tmp_path / "way").symlink_to(tmp_path / "open")

    def check(source: object, *allowed: Path) -> None:
        check_host_mounts(replace(PLAIN, host_mounts=(HostMount(str(source), "/m"),)), allowed)

    for fine in ("open", "open/below", "open/not-yet", "way/below"):
        check(tmp_path / fine, tmp_path / "open")
    for other in ("openly", "open/out", "open/../openly", "."):
        with pytest.raises(TerminalError, match="operator"):
            check(tmp_path / other, tmp_path / "open")
    for nothing in (tmp_path / "open", "open", ""):
        with pytest.raises(TerminalError, match="none"):
            check(nothing)
