"""The parts of the docker backend that need no engine."""

from __future__ import annotations

import io
import os
import struct
import tarfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import docker.errors
import pytest
from hypothesis import given
from hypothesis import strategies as st
from requests import ConnectionError as NotConnected

from conveyor_runtime.errors import BackendError, BackendUnavailable, Gone, ImageNotFound, TerminalError
from conveyor_runtime.orchestra import Mount, Owner, Task
from conveyor_runtime.orchestra.archive import tar_stream
from conveyor_runtime.orchestra.docker import spec
from conveyor_runtime.orchestra.docker.client import Conflicting, Engine, node_name, translate
from conveyor_runtime.orchestra.docker.image import PullReport, digest_of, pull_error
from conveyor_runtime.orchestra.docker.stats import parse_stat
from conveyor_runtime.orchestra.docker.stream import Demux


@given(st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=30))), st.integers(1, 12))
def test_frames_however_they_are_cut(frames: list[tuple[int, bytes]], size: int) -> None:
    data = b"".join(struct.pack(">BxxxL", stream, len(content)) + content for stream, content in frames)
    demux, found = Demux(), {"stdout": b"", "stderr": b""}
    for start in range(0, len(data), size):
        for stream, piece in demux.feed(data[start : start + size]):
            found[stream] += piece
    for number, name in ((1, "stdout"), (2, "stderr")):
        assert found[name] == b"".join(content for stream, content in frames if stream == number)


def test_what_is_no_frame_is_an_error() -> None:
    with pytest.raises(BackendError, match="unknown stream"):
        list(Demux().feed(b"OCI runtime exec failed"))


def test_a_tree_as_tar(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/f").write_bytes(b"x" * 1000)
    (tmp_path / ("n" * 150)).write_text("long")
    os.symlink("/etc/passwd", tmp_path / "link")
    os.link(tmp_path / "d/f", tmp_path / "hard")
    with tarfile.open(fileobj=io.BytesIO(b"".join(tar_stream(tmp_path)))) as archive:
        found = {member.name: member for member in archive.getmembers()}
        assert sorted(found) == ["d", "d/f", "hard", "link", "n" * 150]
        assert found["link"].issym()
        assert found["hard"].isreg()
        assert archive.extractfile("d/f").read() == b"x" * 1000  # type: ignore[union-attr]
        assert {member.uid for member in found.values()} == {0}


def test_a_file_that_shrinks_while_it_is_sent_does_not_break_the_archive(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 5000)
    (tmp_path / "b").write_text("after")
    pieces = tar_stream(tmp_path)
    head = next(pieces)
    (tmp_path / "a").write_bytes(b"y" * 10)
    with tarfile.open(fileobj=io.BytesIO(head + b"".join(pieces))) as archive:
        assert archive.extractfile("a").read() == b"y" * 10 + bytes(4990)  # type: ignore[union-attr]
        assert archive.extractfile("b").read() == b"after"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "message",
    [
        "manifest for busybox:none not found: manifest unknown: manifest unknown",
        "pull access denied for x, repository does not exist or may require 'docker login'",
        "unauthorized: authentication required",
        "no matching manifest for linux/arm64/v8 in the manifest list entries",
    ],
)
def test_images_that_will_never_come(message: str) -> None:
    assert isinstance(pull_error("x", message), ImageNotFound)


@pytest.mark.parametrize(
    "message",
    [
        'Get "https://registry-1.docker.io/v2/": dial tcp: lookup registry-1.docker.io: no such host',
        "net/http: request canceled while waiting for connection",
        "received unexpected HTTP status: 503 Service Unavailable",
        "toomanyrequests: You have reached your pull rate limit",
    ],
)
def test_registries_that_may_answer_later(message: str) -> None:
    assert isinstance(pull_error("x", message), BackendUnavailable)


def test_progress_is_a_few_lines() -> None:
    report = PullReport()
    assert report.line({"status": "Pulling from x", "id": "latest"}, 0) == "latest: Pulling from x"
    part = {"status": "Downloading", "id": "a", "progressDetail": {"current": 1e6, "total": 9e6}}
    assert report.line(part, 0) == "downloading: 1 of 9 MB in 1 layers"
    assert report.line(part, 4) is None
    assert report.line({**part, "id": "b"}, 6) == "downloading: 2 of 18 MB in 2 layers"
    assert report.line({**part, "status": "Extracting"}, 20) is None
    assert report.line({}, 30) is None


def test_errors_are_ours() -> None:
    not_found: Any = docker.errors.ImageNotFound

    class Answer:
        def __init__(self, status: int) -> None:
            self.status_code, self.reason, self.url = status, "r", "u"

    kinds = {400: TerminalError, 404: Gone, 409: Conflicting, 500: BackendError}
    for status, kind in kinds.items():
        error: Any = docker.errors.NotFound if status == 404 else docker.errors.APIError
        assert type(translate(error("m", response=Answer(status), explanation="why"))) is kind
    for explanation in ('the container name "x" is already in use', "container state improper"):  # Podman's words
        assert type(translate(docker.errors.APIError("m", Answer(500), explanation))) is Conflicting
    assert type(translate(not_found("m", response=Answer(404)))) is ImageNotFound
    assert type(translate(NotConnected("no"))) is BackendUnavailable


def test_names_labels_and_owners() -> None:
    owner = Owner("inst", "run-1", "start", 2, 3)
    assert spec.owner_of(spec.labels("ns", "x", owner, "sandbox")) == owner
    assert spec.owner_of({}) == Owner("", "", "", 0, 0)
    task = Task("x", mounts=(Mount("cache", "/c"), Mount("data", "below")))
    volumes = {"/c": "ns.cache", "/workspace/below": "ns.data"}
    assert spec.volume_names("ns", task) == volumes
    assert spec.sandbox_volumes("ns", task) == {"/workspace": "ns.x.workspace", **volumes}
    for mount in (Mount("c", "/workspace"), Mount("../c", "/c")):
        with pytest.raises(TerminalError):
            spec.sandbox_volumes("ns", Task("x", mounts=(mount,)))


def test_the_digest_is_of_the_repository_that_was_asked_for() -> None:
    one, two, three = (f"sha256:{letter * 64}" for letter in "123")
    image = {"Id": three, "RepoDigests": [f"q.io:5000/mirror/tools@{one}", f"debian@{two}", "<none>@<none>"]}
    assert digest_of(image, "q.io:5000/mirror/tools:7") == one
    assert digest_of(image, "docker.io/library/debian") == digest_of(image, "debian:12") == two
    assert digest_of(image, "q.io:5000/tools") == digest_of({"Id": three}, "debian") == digest_of(image, three) == three
    assert digest_of(image, f"debian@{three}") == three


def test_engines_that_share_an_id_are_two_nodes() -> None:
    info = {"ID": "GTZS:CTII:5PPS:O4QT", "Name": "host", "DockerRootDir": "/var/lib/docker"}
    names = {node_name(info), node_name({**info, "Name": "b"}), node_name({**info, "DockerRootDir": "/d"})}
    assert len(names) == 3
    assert node_name(info) == node_name(dict(info))
    assert node_name(info).startswith("docker-GTZSCTII5PPS-")
    assert node_name({"Name": "podman"}).startswith("docker-x-")


def test_output_is_kept_by_what_the_engine_has() -> None:
    assert Engine(None, "n", {}).log_config["Type"] == "local"
    assert Engine(None, "n", {"Plugins": {"Log": ["json-file", "local"]}}).log_config["Type"] == "local"
    assert Engine(None, "n", {"Plugins": {"Log": ["k8s-file", "journald"]}}).log_config["Type"] == "k8s-file"


def sample(**cpu: Any) -> dict[str, Any]:
    """As the engine sends it, with what both versions of cgroups have."""
    return {
        "read": "2026-01-01T00:00:02.123456789Z",
        "cpu_stats": {"cpu_usage": {"total_usage": 3_000_000_000}, "system_cpu_usage": 40_000_000_000, **cpu},
        "precpu_stats": {"cpu_usage": {"total_usage": 2_000_000_000}, "system_cpu_usage": 36_000_000_000},
        "memory_stats": {"usage": 900, "limit": 5000, "stats": {"inactive_file": 300}},
        "pids_stats": {"current": 4},
        "networks": {"eth0": {"rx_bytes": 1, "tx_bytes": 2}, "eth1": {"rx_bytes": 10, "tx_bytes": 20}},
        "blkio_stats": {"io_service_bytes_recursive": [{"op": "Read", "value": 7}, {"op": "write", "value": 8}]},
    }


def test_a_sample_on_either_version_of_cgroups() -> None:
    v2 = parse_stat(sample(online_cpus=4))
    assert v2 is not None
    assert (v2.cpu_milli, v2.memory_bytes, v2.memory_limit_bytes, v2.pids) == (1000.0, 600, 5000, 4)
    assert (v2.network_in_bytes, v2.network_out_bytes, v2.disk_read_bytes, v2.disk_written_bytes) == (11, 22, 7, 8)
    assert v2.at == datetime(2026, 1, 1, 0, 0, 2, 123456, UTC)
    # Without online_cpus, as old engines on v1, the list per processor says how many there are.
    v1 = sample()
    v1["cpu_stats"]["cpu_usage"]["percpu_usage"] = [1, 2]
    v1["memory_stats"] = {"usage": 900, "limit": 1 << 62, "stats": {"total_inactive_file": 100, "inactive_file": 5}}
    found = parse_stat(v1)
    assert found is not None
    assert (found.cpu_milli, found.memory_bytes, found.memory_limit_bytes) == (500.0, 800, 0)


def test_a_sample_with_nothing_before_it_says_nothing() -> None:
    assert parse_stat({**sample(online_cpus=4), "precpu_stats": {}}) is None
    idle = sample(online_cpus=4)
    idle["precpu_stats"]["cpu_usage"]["total_usage"] = 5_000_000_000
    found = parse_stat(idle)
    assert found is not None
    assert found.cpu_milli == 0.0
