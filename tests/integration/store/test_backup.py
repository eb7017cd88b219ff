"""A backup, taken while runs are under way, brings all that was acknowledged before it to a fresh store."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import zipfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from conveyor_runtime.bus import Bus, server_setup, subjects
from conveyor_runtime.bus.snapshot import restore_stream
from conveyor_runtime.bus.streams import DLQ, LOGS, MESSAGES, RESULTS, STATE, STREAMS, ensure_streams, stream_info
from conveyor_runtime.config import ApiSettings, BusSettings
from conveyor_runtime.daemon import restore
from conveyor_runtime.daemon.backup import _backup
from conveyor_runtime.daemon.connect import connect, connect_driver, state_on
from conveyor_runtime.daemon.restore import _restore
from conveyor_runtime.daemon.soundness import MARKS, new_epoch, sound_store
from conveyor_runtime.daemon.up import UpSettings, up
from conveyor_runtime.errors import BusError, ConfigError
from conveyor_runtime.models import DriverResult
from conveyor_runtime.reconcile import Driver, DriverLogger
from conveyor_runtime.store.integrity import EpochChangedError, HighWater, watch_epoch
from tests.conftest import StartServer
from tests.integration.engine.test_runs import recorder
from tests.support.cluster import cluster_on
from tests.support.streams import give_back_after


def held(release: asyncio.Event, seen: list[str]) -> Driver:
    async def reconcile(payload: str, event: str, run_id: str, logger: DriverLogger) -> DriverResult:
        seen.append(run_id)
        logger.info("at work")
        await release.wait()
        return DriverResult(success=True, data={"here": True})

    return Driver("held", ("thing",), reconcile, direct=False)


async def test_a_round_trip_with_runs_under_way(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ended stays ended and is not run again, what was live goes on, what waited is done."""
    monkeypatch.setattr("conveyor_runtime.engine.liveness.LEASE_SILENCE", 9.0)
    old, file = await start_server(), tmp_path / "backup"
    calls: list[tuple[str, str]] = []
    seen: list[str] = []
    never = asyncio.Event()
    async with cluster_on(old.url) as cluster:
        await cluster.define("thing")
        await cluster.pipeline("p", "thing", "a")
        await cluster.pipeline("slow", "thing", "a", "held")
        await cluster.add(recorder("a", calls, direct=False))
        await cluster.add(held(never, seen), drain_grace=0.0, kill_grace=0.1)
        ended = [(await cluster.post("thing", f"done{number}", "p", x=number)).run_id for number in range(20)]
        for run_id in ended:
            await cluster.ended(run_id)
        live = (await cluster.post("thing", "live", "slow")).run_id
        async with asyncio.timeout(10):
            while not seen:
                await asyncio.sleep(0.01)
            while not await cluster.logs(live):
                await asyncio.sleep(0.01)
        posting = asyncio.create_task(_post_on(cluster))
        told = await _backup(file, old.url)
        posting.cancel()
        later = (await cluster.post("thing", "later", "p")).run_id
        await cluster.ended(later)
        before = await cluster.state.ensure_meta()
    assert told.installation == before.installation and file.stat().st_mode & 0o077 == 0
    calls.clear()
    seen.clear()

    fresh = await start_server()
    await _restore(file, fresh.url, tmp_path)
    async with cluster_on(fresh.url) as cluster:
        after = await cluster.state.ensure_meta()
        assert after.installation == before.installation and after.epoch != before.epoch
        assert await cluster.state.run(later) is None, "acknowledged after the backup"
        release = asyncio.Event()
        release.set()
        await cluster.add(held(release, seen), drain_grace=0.0)
        await cluster.add(recorder("a", calls, direct=False))
        for name in ("a", "held"):
            await give_back_after(cluster.bus, subjects.driver_consumer(name), 3.0)
        run = await cluster.ended(live, 80)
        assert (run.status, seen) == ("Succeeded", [live]) and run.steps[1].data == {"here": True}
        for run_id in ended:
            assert cluster.run(run_id).status == "Succeeded"
        for found in list(cluster.state.view.live_runs):
            assert (await cluster.ended(found, 60)).status == "Succeeded", "it was accepted while the backup was made"
        assert not {name for name, _ in calls if name.startswith("done")}
        assert [line.message for line in await cluster.logs(live)].count("at work") == 2
        again = (await cluster.post("thing", "later", "p")).run_id
        assert (await cluster.ended(again)).status == "Succeeded"


async def _post_on(cluster: Any) -> None:
    number = 0
    while True:
        number += 1
        await cluster.post("thing", f"meanwhile{number}", "p")


@pytest.mark.parametrize("damage", ["flip", "cut", "text"])
async def test_a_damaged_backup_is_refused_before_anything_is_touched(
    start_server: StartServer, tmp_path: Path, damage: str
) -> None:
    old, file = await start_server(), tmp_path / "backup"
    async with cluster_on(old.url) as cluster:
        await cluster.define("thing")
        await _backup(file, old.url)
    data = bytearray(file.read_bytes())
    if damage == "flip":
        with zipfile.ZipFile(file) as archive:
            data[archive.getinfo(f"{STATE}.snapshot").header_offset + 200] ^= 1
    file.write_bytes({"flip": bytes(data), "cut": bytes(data[: len(data) // 2]), "text": b"hello"}[damage])
    fresh = await start_server()
    with pytest.raises(ConfigError, match="damaged"):
        await _restore(file, fresh.url, tmp_path)
    bus = await Bus.connect(fresh.url, name="test")
    assert not (await bus.api("STREAM.NAMES"))["streams"]
    await bus.close()


async def test_a_store_in_use_is_never_restored_over(start_server: StartServer, tmp_path: Path) -> None:
    old, file = await start_server(), tmp_path / "backup"
    async with cluster_on(old.url) as cluster:
        await _backup(file, old.url)
        count = (await stream_info(cluster.bus, STATE))["state"]["last_seq"]  # type: ignore[index]
        with pytest.raises(ConfigError, match="already; restore to a fresh one"):
            await _restore(file, old.url, tmp_path)
        assert (await stream_info(cluster.bus, STATE))["state"]["last_seq"] == count  # type: ignore[index]


async def killed_restore(file: Path, *arguments: str, at: str) -> None:
    """A restore that is killed when it comes to `at`, a function of its module."""
    program = f"""
import os, signal, sys
from pathlib import Path
from conveyor_runtime.daemon import restore
async def die(*arguments, **named):
    os.kill(os.getpid(), signal.SIGKILL)
restore.{at} = die
restore.run_restore(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, str(file), *arguments)
    assert await asyncio.wait_for(process.wait(), 30) == -signal.SIGKILL


async def started_backup(file: Path, url: str) -> asyncio.subprocess.Process:
    """A backup that has begun to write and then stands still."""
    program = """
import asyncio, sys
from pathlib import Path
from conveyor_runtime.daemon import backup
async def stand_still(*arguments):
    print("writing", flush=True)
    await asyncio.Event().wait()
backup._write_stream = stand_still
backup.run_backup(Path(sys.argv[1]), sys.argv[2])
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(file), url, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 20) == b"writing\n"
    return process


async def test_a_backup_that_is_ended_leaves_nothing(start_server: StartServer, tmp_path: Path) -> None:
    """What is half written holds all secrets. One that is killed leaves it to the next; one at work is left alone."""
    url, folder = (await start_server()).url, tmp_path / "backups"
    folder.mkdir()
    async with cluster_on(url):
        pass
    theirs = folder / ".monday.notes"
    theirs.touch()
    at_work = await started_backup(folder / "monday", url)
    killed = await started_backup(folder / "monday", url)
    killed.kill()
    await killed.wait()
    assert (folder / f".monday.{killed.pid}").exists(), "or this proves nothing"
    await _backup(folder / "monday", url)
    left = {path.name for path in folder.iterdir()}
    assert left == {"monday", theirs.name, f".monday.{at_work.pid}"}
    at_work.terminate()
    assert await asyncio.wait_for(at_work.wait(), 20) == -signal.SIGTERM
    assert {path.name for path in folder.iterdir()} == {"monday", theirs.name}


async def test_a_store_is_restored_whole_or_is_not_there(start_server: StartServer, tmp_path: Path) -> None:
    """Killed before the new epoch is written, it leaves nothing that is served; done again, it is whole."""
    old, file, data = await start_server(), tmp_path / "backup", tmp_path / "data"
    async with cluster_on(old.url) as cluster:
        await cluster.define("thing")
        before = await cluster.state.ensure_meta()
        await _backup(file, old.url)
    await killed_restore(file, "", str(data), at="_begin_anew")
    with pytest.raises(ConfigError, match=r"has not ended.*conveyor restore.*--data"):
        async with up(UpSettings(bus=BusSettings(data_dir=data), drivers=())):
            pass
    told = await _restore(file, "", data)
    assert {path.name for path in (data / "nats").iterdir()} == {"lock", "store"}
    async with up(UpSettings(bus=BusSettings(data_dir=data), api=ApiSettings(port=0), drivers=())) as running:
        after = await running.control.state.ensure_meta()
        assert (after.installation, str(after.backup_at)) == (before.installation, told.at.replace("T", " "))
        assert after.epoch != before.epoch and await running.control.state.definition("thing") is not None
    with pytest.raises(ConfigError, match="holds a store already"):
        await _restore(file, "", data)


async def test_nobody_serves_a_folder_while_it_is_restored_to(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_setup, "LOCK_PATIENCE", 0.5)
    old, file, data = await start_server(), tmp_path / "backup", tmp_path / "data"
    async with cluster_on(old.url):
        await _backup(file, old.url)
    begin_anew = restore._begin_anew

    async def meanwhile(*arguments: Any, **named: Any) -> None:
        with pytest.raises(ConfigError, match=f"in use by process {os.getpid()}"):
            await start_server(data_dir=data / "nats")
        with pytest.raises(ConfigError, match=f"in use by process {os.getpid()}"):
            await _restore(file, "", data)
        await begin_anew(*arguments, **named)

    monkeypatch.setattr(restore, "_begin_anew", meanwhile)
    await _restore(file, "", data)


async def streams_on(url: str) -> dict[str, int]:
    """Our streams on a bus, and all others, with how many messages they have."""
    bus = await Bus.connect(url, name="test")
    names = (await bus.api("STREAM.NAMES"))["streams"] or []
    infos = {name: await stream_info(bus, name) for name in names}
    await bus.close()
    return {name: info["state"]["messages"] for name, info in infos.items() if info}


async def test_nothing_is_served_on_a_bus_before_a_restore_to_it_has_ended(
    start_server: StartServer, tmp_path: Path
) -> None:
    """Killed, it leaves a bus that control plane, drivers and backups refuse; done again, it is whole."""
    old, fresh, file = await start_server(), await start_server(), tmp_path / "backup"
    async with cluster_on(old.url) as cluster:
        await cluster.define("thing")
        await _backup(file, old.url)
        before = await cluster.state.ensure_meta()
    await killed_restore(file, fresh.url, str(tmp_path), at="_begin_anew")
    for use in (connect(fresh.url, name="test"), connect_driver(fresh.url, name="test"), _backup(file, fresh.url)):
        with pytest.raises(ConfigError, match=r"has not ended.*conveyor restore FILE --nats-url"):
            await use
    await _restore(file, fresh.url, tmp_path)
    assert set(await streams_on(fresh.url)) == set(STREAMS)
    async with cluster_on(fresh.url) as cluster:
        after = await cluster.state.ensure_meta()
        assert after.installation == before.installation and after.epoch != before.epoch
        assert await cluster.state.definition("thing") is not None


async def test_a_second_restore_leaves_the_first_alone(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, fresh, file = await start_server(), await start_server(), tmp_path / "backup"
    async with cluster_on(old.url) as cluster:
        await cluster.define("thing")
        await _backup(file, old.url)
    begin_anew = restore._begin_anew

    async def meanwhile(*arguments: Any, **named: Any) -> None:
        with pytest.raises(ConfigError, match="has not ended"):
            await _restore(file, fresh.url, tmp_path)
        await begin_anew(*arguments, **named)

    monkeypatch.setattr(restore, "_begin_anew", meanwhile)
    await _restore(file, fresh.url, tmp_path)
    async with cluster_on(fresh.url) as cluster:
        assert await cluster.state.definition("thing") is not None


async def test_a_restore_that_fails_removes_what_it_made_and_nothing_else(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, fresh, file = await start_server(), await start_server(), tmp_path / "backup"
    async with cluster_on(old.url):
        await _backup(file, old.url)

    async def met(bus: Bus, name: str, *arguments: Any) -> None:
        if name == STATE:
            other = await Bus.connect(fresh.url, name="other")
            await other.api(f"STREAM.CREATE.{STATE}", {"name": STATE, **STREAMS[STATE]})
            await other.publish("$KV.cv-state.theirs", b"kept")
            await other.close()
        await restore_stream(bus, name, *arguments)

    monkeypatch.setattr(restore, "restore_stream", met)
    with pytest.raises(BusError, match=f"a stream {STATE} already"):
        await _restore(file, fresh.url, tmp_path)
    assert await streams_on(fresh.url) == {STATE: 1}


async def test_a_restore_that_was_cut_off_does_not_go_on(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another may have found nobody, and begun."""
    old, fresh, file = await start_server(), await start_server(), tmp_path / "backup"
    async with cluster_on(old.url):
        await _backup(file, old.url)

    async def cut_off(bus: Bus, name: str, *arguments: Any) -> None:
        await restore_stream(bus, name, *arguments)
        if name == RESULTS:
            await lose_connection(bus)
            monkeypatch.setattr(restore, "restore_stream", restore_stream)
            await _restore(file, fresh.url, tmp_path)
            await bus.wait_connected(10)

    monkeypatch.setattr(restore, "restore_stream", cut_off)
    with pytest.raises(BusError, match="broke during the restore"):
        await _restore(file, fresh.url, tmp_path)
    assert set(await streams_on(fresh.url)) == set(STREAMS)


async def test_the_order_keeps_the_promises(start_server: StartServer, tmp_path: Path) -> None:
    """A result that is committed meanwhile must be in the state, a dispatch that is done must not come back."""
    server, file = await start_server(), tmp_path / "backup"
    bus = await connect(server.url, name="test")
    await _backup(file, server.url)
    await bus.close()
    with zipfile.ZipFile(file) as archive:
        names = [name.removesuffix(".snapshot") for name in archive.namelist() if name.endswith(".snapshot")]
    assert names == [RESULTS, STATE, MESSAGES, LOGS, DLQ]
    assert set(names) == set(STREAMS)


async def lose_connection(bus: Bus) -> None:
    assert bus._nc._transport is not None
    bus._nc._transport._io_writer.close()  # type: ignore[attr-defined]
    while bus.connected:
        await asyncio.sleep(0.01)


async def make_new_epoch(bus: Bus) -> None:
    async with state_on(bus) as state:
        await new_epoch(state)


async def remove_results(bus: Bus) -> None:
    await bus.api(f"STREAM.DELETE.{RESULTS}")


async def make_results_anew(bus: Bus) -> None:
    await remove_results(bus)
    await ensure_streams(bus)


async def remove_state(bus: Bus) -> None:
    await bus.api(f"STREAM.DELETE.{STATE}")


@pytest.mark.parametrize("change", [make_new_epoch, remove_results, make_results_anew, remove_state])
async def test_processes_that_knew_another_store_end(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch, change: Callable[[Bus], Awaitable[None]]
) -> None:
    """They are connected all the while."""
    monkeypatch.setattr("conveyor_runtime.store.integrity._LOOK", 0.1)
    bus = await Bus.connect((await start_server()).url, name="test")
    await ensure_streams(bus)
    async with state_on(bus) as state:
        await state.ensure_meta()
        watching = asyncio.create_task(watch_epoch(bus, state))
        await asyncio.wait({watching}, timeout=0.5)
        assert not watching.done()
        await change(bus)
        with pytest.raises(EpochChangedError):
            await asyncio.wait_for(watching, 5)
    await bus.close()


async def test_a_driver_that_knew_the_store_before_ends_at_its_reconnect(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conveyor_runtime.store.integrity._LOOK", 3600.0)
    server = await start_server()
    async with cluster_on(server.url) as cluster:
        manager = await cluster.add(recorder("a", []))
        [(_, task)] = cluster.managers
        await asyncio.sleep(0.1)
        await new_epoch(cluster.state)
        await lose_connection(manager._deps.bus)
        with pytest.raises(EpochChangedError):
            await asyncio.wait_for(task, 10)
        cluster.managers.clear()


async def test_a_store_that_was_restored_in_its_place_is_served(tmp_path: Path, start_server: StartServer) -> None:
    """Also after a control plane that went on meanwhile has seen it shrink."""
    server, file = await start_server(), tmp_path / "backup"
    settings = BusSettings(url=server.url, data_dir=tmp_path)
    bus = await Bus.connect(server.url, name="test")
    await ensure_streams(bus)
    async with state_on(bus) as state:
        async with sound_store(bus, state, settings):
            await _backup(file, server.url)
            await bus.publish("logs.later", b"line")
        for name in STREAMS:
            await bus.api(f"STREAM.DELETE.{name}")
        [mark] = [HighWater.read(tmp_path / MARKS, name) for name in orjson.loads((tmp_path / MARKS).read_bytes())]
        await mark.note(["it shrank"])
        await _restore(file, server.url, tmp_path)
        async with sound_store(bus, state, settings):
            pass
        meta = await state.ensure_meta()
        kept = HighWater.read(tmp_path / MARKS, mark.bus_name)
        assert (kept.epoch, list(kept.damage)) == (meta.epoch, []) and kept.epoch != mark.epoch
    await bus.close()
