"""The small guest image: made from Debian packages, found again by its manifest."""

from conveyor_runtime.orchestra.qemu.image.build import build

__all__ = ["build"]
