"""The drivers that ship: they build a repository in a sandbox.

They are ordinary drivers, found by entry point like anybody else's. What they share is in `drivers.spec` (what a
resource may say) and `drivers.sandboxes` (where the sandbox of a run is).
"""
