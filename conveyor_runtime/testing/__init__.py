"""For tests of what stands on the runtime: the suite that every backend must pass.

A third party's backend is held to the contract by a test module of three parts, run by pytest with pytest-asyncio in
its auto mode:

    from conveyor_runtime.testing import Place
    from conveyor_runtime.testing.container_cases import *  # noqa: F403

    @pytest.fixture
    async def place(tmp_path):
        async with Place(lambda: open_my_backend(tmp_path), image="busybox", keeps={"user", "tmpfs"}) as place:
            yield place

A backend that has sandboxes takes `sandbox_cases` as well, in another module. The cases run small `sh` scripts with the
usual commands of a minimal system (busybox has them all). A case of an optional capability is skipped where the
protocol check says no. What the place says its backend keeps (`orchestra.Wish`) is proven; all else must be refused
(`TerminalError`) before anything starts, and cases that need it are then skipped.
"""

import pytest

pytest.register_assert_rewrite(
    *(
        f"conveyor_runtime.testing.{module}"
        for module in (
            "containers",
            "endings",
            "extras",
            "namespaces",
            "outputs",
            "sandbox_copies",
            "sandbox_ends",
            "sandbox_execs",
            "sandbox_lifecycle",
            "sandbox_wishes",
            "volumes",
            "wishes",
        )
    )
)

from conveyor_runtime.testing.place import TAG, Place, Said, run, unique, until  # noqa: E402 - after the rewriting

__all__ = ["TAG", "Place", "Said", "run", "unique", "until"]
