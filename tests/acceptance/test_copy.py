"""A restored backup that is started beside the original by mistake: neither's janitor touches what the other began."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from conveyor_runtime.bus import Bus
from conveyor_runtime.daemon.connect import state_on
from conveyor_runtime.orchestra import BackendSettings, Orchestra
from conveyor_runtime.reconcile.janitor import Janitor
from tests.acceptance.world import World, build, eventually


def sandbox_of(world: World, run_id: str, root: Path) -> Path:
    """The run's sandbox, once its build says that it is under way."""
    process = world.start("logs", "-f", run_id)
    process.until("[build] working")
    process.close()
    return next(it for it in root.glob("cv-*") if it.name.endswith(run_id))


def age(namespace: Path) -> None:
    """Let it be an hour old, so that no janitor spares it for being young."""
    for path in namespace.glob("*/meta.json"):
        meta = json.loads(path.read_text())
        meta["created_at"] = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
        path.write_text(json.dumps(meta))


async def clean_up(world: World, root: Path) -> None:
    """One round of the janitor that this world's drivers have."""
    bus = await Bus.connect(world.addresses["nats"], name="test")
    orchestra = await Orchestra.open("native", BackendSettings(native_root=root))
    async with state_on(bus) as state:
        await Janitor(state, orchestra, (await state.ensure_meta()).installation).round()
    await orchestra.close()
    await bus.close()


def leftover_of_nobody(like: Path) -> Path:
    """A sandbox of a run that was made long ago and that no store knows."""
    number = uuid.UUID(int=int(like.name[-36:].replace("-", ""), 16) - (86_400_000 << 80))
    left = like.with_name(like.name[:-36] + str(number))
    for path in like.glob("*/meta.json"):
        meta: dict[str, Any] = json.loads(path.read_text())
        meta["owner"]["run_id"] = str(number)
        (left / path.parent.name).mkdir(parents=True)
        (left / path.parent.name / "meta.json").write_text(json.dumps(meta))
    return left


async def test_a_copy_and_its_original_leave_each_others_builds_alone(own_world: World, repository: str) -> None:
    own_world.up("--backend", "native")
    own_world.ok("backup", "all.backup", CONVEYOR_NATS_URL=own_world.addresses["nats"])
    (own_world.folder / "copy").mkdir()
    copy, root = World(own_world.folder / "copy", mark=own_world.mark), own_world.native_root
    own_world.ok("restore", "all.backup", "--data", str(copy.folder / "data"))
    try:
        copy.up("--backend", "native", "--native-root", str(root))
        begun = {}
        for world, name in ((own_world, "of-original"), (copy, "of-copy")):
            document = build(repository, "echo working; sleep 600", name=name)
            run_id = json.loads(world.ok("apply", "-f", world.file("b.json", document), "-o", "json"))[0]["run"]
            begun[name] = sandbox_of(world, run_id, root)
            age(begun[name])
        for world in (own_world, copy):
            left = leftover_of_nobody(begun["of-original"])
            await clean_up(world, root)
            assert not left.exists(), "it does clean up"
            assert {name for name, it in begun.items() if it.exists()} == {"of-original", "of-copy"}
        for world, name in ((own_world, "of-original"), (copy, "of-copy")):
            run = world.get("/runs")["items"][0]
            assert run["status"] == "Running"
            world.ok("cancel", "ci-build", name, "--wait")
        eventually(lambda: not own_world.builds_left(), 10.0, "both cleaned up after themselves")
    finally:
        copy.close()
