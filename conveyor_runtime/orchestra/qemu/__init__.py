"""The qemu backend: every namespace in a machine of its own."""

from conveyor_runtime.orchestra.qemu.backend import QemuBackend

__all__ = ["QemuBackend"]
