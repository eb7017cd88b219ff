"""Where containers run: one contract (`base`), its backends, and what is common to them.

This room knows nothing of resources, runs or the bus: it is told a namespace and an owner, and labels what it makes
with them. Foreign exceptions (Docker's, the operating system's) are translated inside their backend.
"""
