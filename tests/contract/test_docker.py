"""What only containers can do: limits, users, memory that runs out, images that are missing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from conveyor_runtime.errors import BackendError, BackendUnavailable, Gone, ImageNotFound, TerminalError
from conveyor_runtime.orchestra import ExecTag, Limits, Mount, Task
from conveyor_runtime.orchestra.docker import DockerBackend
from conveyor_runtime.testing import Place, Said, run, unique
from tests.contract.conftest import sleeping, until

pytestmark = pytest.mark.docker


async def quiet(line: str) -> None:
    """Nobody reads the progress."""


async def started(place: Place, **options: Any) -> Any:
    return await (await place.open()).start_sandbox(place.ns(), place.task(**options), place.owner())


async def test_limits_are_in_the_cgroup(docker_place: Place) -> None:
    limits = Limits(cpu_milli=1500, memory_bytes=64 << 20, pids=40)
    sandbox = await started(docker_place, limits=limits)
    script = (
        "cd /sys/fs/cgroup; if [ -e memory.max ]; then cat cpu.max memory.max memory.swap.max pids.max; else "
        "cat cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us memory/memory.limit_in_bytes "
        "memory/memory.memsw.limit_in_bytes pids/pids.max; fi"
    )
    _, said = await run(sandbox, script)
    assert said.stdout.split() in (
        [b"150000", b"100000", b"67108864", b"67108864", b"40"],
        [b"150000", b"100000", b"67108864", b"0", b"40"],
    )


async def test_running_out_of_memory_is_told(docker_place: Place) -> None:
    sandbox = await started(docker_place, limits=Limits(memory_bytes=32 << 20))
    status, _ = await run(sandbox, "tail /dev/zero")
    assert (status.status, status.exit_code, status.reason) == ("killed", 137, "oom")
    status, _ = await run(sandbox, "kill -9 $$")
    assert (status.status, status.exit_code, status.reason) == ("killed", 137, "signal")


async def test_another_user_can_write_and_be_ended(docker_place: Place, tmp_path: Path) -> None:
    number = unique()
    (tmp_path / "file").write_text("x")
    sandbox = await started(docker_place, user="builder")
    await sandbox.copy_in(tmp_path, ".")
    _, said = await run(sandbox, "id -u; echo y >> file; cat file; touch new; stat -c %u file new .")
    assert said.stdout.split() == [b"1000", b"xy", b"1000", b"1000", b"1000"]
    daemon = f"(setsid sleep {number} > /dev/null 2>&1 &); sleep {number}"
    status, _ = await run(sandbox, daemon, timeout=0.5)
    assert status.status == "timeout"
    assert sleeping(number) == []
    await run(sandbox, f"(setsid sleep {number} > /dev/null 2>&1 &)", user="0")
    await run(sandbox, f"(setsid sleep {number} > /dev/null 2>&1 &)")
    await until(lambda: len(sleeping(number)) == 2)
    assert await sandbox.end_execs("build", (1, 1), grace=1) == 2
    assert sleeping(number) == []


async def test_few_privileges_but_enough_to_build(docker_place: Place) -> None:
    sandbox = await started(docker_place)
    _, said = await run(sandbox, "grep -E '^(CapEff|NoNewPrivs)' /proc/self/status")
    words = said.stdout.split()
    assert int(words[1], 16) & (1 << 21 | 1 << 12 | 1 << 13) == 0  # SYS_ADMIN, NET_ADMIN, NET_RAW
    assert words[3] == b"1"
    _, said = await run(sandbox, "touch f && chown 1000 f && chmod 4755 f && mknod n c 1 3 && ping -c 1 127.0.0.1")
    assert b"permitted" not in said.stderr.replace(b"ping: permission denied", b""), said.stderr


async def test_no_network_on_request(docker_place: Place) -> None:
    sandbox = await started(docker_place, network="none")
    _, said = await run(sandbox, "ls /sys/class/net")
    assert b"eth0" not in said.stdout


async def test_mounts_are_shared_by_the_namespace(docker_place: Place) -> None:
    mounts = (Mount("cache", "/cache"),)
    one = await started(docker_place, mounts=mounts)
    two = await started(docker_place, mounts=mounts, id="second")
    await run(one, "echo shared > /cache/f")
    assert (await run(two, "cat /cache/f"))[1].stdout == b"shared\n"


async def test_zombies_are_reaped(docker_place: Place) -> None:
    sandbox = await started(docker_place)
    await run(sandbox, "(sh -c 'sleep 0.1 & exec sleep 0.2' &)")
    await asyncio.sleep(0.5)
    _, said = await run(sandbox, "ps")
    assert b"Z" not in said.stdout.split(b"COMMAND")[-1]
    assert b"sleep 0." not in said.stdout


async def test_removed_from_outside_is_gone(docker_place: Place, docker_engine: Any) -> None:
    sandbox = await started(docker_place)
    said = Said()
    running = asyncio.create_task(run(sandbox, "echo up; sleep 1000", said=said))
    await said.until(b"up")
    docker_engine.remove_container(sandbox.id, force=True)
    with pytest.raises(Gone):
        async with asyncio.timeout(20):
            await running
    backend = await docker_place.open()
    with pytest.raises(Gone):
        await backend.get_sandbox(docker_place.ns(), "sandbox")
    with pytest.raises(Gone):
        await run(sandbox, "true")
    with pytest.raises(Gone):
        await sandbox.end_execs("build", (2, 0))
    await backend.close_namespace(docker_place.ns())
    assert await backend.namespaces(docker_place.installation) == []


async def test_stopped_from_outside_is_gone_until_started_again(docker_place: Place, docker_engine: Any) -> None:
    sandbox = await started(docker_place)
    await run(sandbox, "echo kept > file")
    docker_engine.kill(sandbox.id)
    backend = await docker_place.open()
    await until(lambda: not docker_engine.inspect_container(sandbox.id)["State"]["Running"])
    with pytest.raises(Gone):
        await backend.get_sandbox(docker_place.ns(), "sandbox")
    with pytest.raises(Gone):
        await run(sandbox, "true")
    again = await started(docker_place)
    assert again.id == sandbox.id
    assert (await run(again, "cat file"))[1].stdout == b"kept\n"


async def test_a_container_left_created_is_started(docker_place: Place, docker_engine: Any) -> None:
    sandbox = await started(docker_place)
    name = docker_engine.inspect_container(sandbox.id)["Name"].lstrip("/")
    config = docker_engine.inspect_container(sandbox.id)
    docker_engine.remove_container(sandbox.id, force=True)
    created = docker_engine.create_container(
        config["Config"]["Image"],
        entrypoint=config["Config"]["Entrypoint"],
        name=name,
        labels=config["Config"]["Labels"],
        working_dir="/workspace",
    )
    backend = await docker_place.open()
    with pytest.raises(Gone):
        await backend.get_sandbox(docker_place.ns(), "sandbox")
    assert (await started(docker_place)).id == created["Id"]
    await backend.get_sandbox(docker_place.ns(), "sandbox")


async def test_a_strangers_container_of_that_name_is_left_alone(docker_place: Place, docker_engine: Any) -> None:
    name = f"{docker_place.ns()}.sandbox"
    stranger = docker_engine.create_container(docker_place.image, ["sleep", "1000"], name=name)
    try:
        with pytest.raises(BackendError, match="not ours"):
            await started(docker_place)
        backend = await docker_place.open()
        await backend.close_namespace(docker_place.ns())
        docker_engine.inspect_container(stranger["Id"])
    finally:
        docker_engine.remove_container(stranger["Id"], force=True)


async def test_volume_in_use_is_reported_and_the_rest_removed(docker_place: Place, docker_engine: Any) -> None:
    await started(docker_place)
    volume = f"{docker_place.ns()}.sandbox.workspace"
    host = docker_engine.create_host_config(binds=[f"{volume}:/v"])
    user = docker_engine.create_container(docker_place.image, ["sleep", "1000"], host_config=host)
    backend = await docker_place.open()
    try:
        with pytest.raises(BackendError, match=r"sandbox\.workspace"):
            await backend.close_namespace(docker_place.ns())
        with pytest.raises(Gone):
            await backend.get_sandbox(docker_place.ns(), "sandbox")
    finally:
        docker_engine.remove_container(user["Id"], force=True)
    await backend.close_namespace(docker_place.ns())


async def test_images_that_are_not_here(docker_place: Place) -> None:
    backend = await docker_place.open()
    missing = Task("x", image="conveyor-test/no-such-image:1", pull="never")
    with pytest.raises(ImageNotFound, match="never"):
        await backend.prepare(missing, quiet)
    with pytest.raises(ImageNotFound):
        await backend.start_sandbox(docker_place.ns(), missing, docker_place.owner())
    with pytest.raises(TerminalError):
        await backend.prepare(Task("x", image="NOT//an image"), quiet)
    with pytest.raises(TerminalError):
        await backend.prepare(Task("x"), quiet)


async def test_a_registry_that_is_down_is_no_missing_image(docker_place: Place) -> None:
    said: list[str] = []

    async def progress(line: str) -> None:
        said.append(line)

    backend = await docker_place.open()
    with pytest.raises(BackendUnavailable, match="127"):
        await backend.prepare(Task("x", image="127.0.0.1:9/no/such:1"), progress)
    assert said[0] == "pulling 127.0.0.1:9/no/such:1"


async def test_an_image_without_a_shell_is_refused(docker_place: Place, docker_engine: Any) -> None:
    import io
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("nothing"))
    docker_engine.import_image_from_data(buffer.getvalue(), "conveyor-test/empty", "latest")
    with pytest.raises((TerminalError, BackendError), match="sh"):
        await started(docker_place, image="conveyor-test/empty")


async def test_no_engine_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    with pytest.raises(BackendUnavailable):
        await DockerBackend.open()


async def test_a_container_in_which_nothing_ends_holds_up_nobody(
    docker_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conveyor_runtime.orchestra.docker.helper._SHORT", 1.0)
    sandbox = await started(docker_place)
    shell = "#!/bin/busybox sh\nexec sleep 1000\n"
    assert (await run(sandbox, f"rm /bin/sh; printf '{shell}' > /bin/sh; chmod +x /bin/sh"))[0].exit_code == 0
    async with asyncio.timeout(20):
        with pytest.raises(BackendError, match="not answered for 1 s"):
            await sandbox.end_execs("build", (2, 0))
        backend = await docker_place.open()
        await backend.close_namespace(docker_place.ns(), grace=5)
        await backend.close()


async def test_thirty_builds_at_once_can_all_be_cancelled(docker_place: Place) -> None:
    number = unique()
    sandbox = await started(docker_place)
    running = [
        asyncio.create_task(run(sandbox, f"sleep {number}", tag=ExecTag("run", "build", 1, 0))) for _ in range(30)
    ]
    await until(lambda: len(sleeping(number)) == 30, 60)
    for task in running:
        task.cancel()
    async with asyncio.timeout(60):
        await asyncio.wait(running)
    assert sleeping(number) == []
