"""`conveyor` with leases a fifth as long, all in proportion: a process that stood still is found out in ten seconds.

Run as `python -m tests.support.hasty ...`; nothing of the product can be set so.
"""

from __future__ import annotations

from conveyor_runtime.cli import main
from conveyor_runtime.engine import liveness
from conveyor_runtime.models import LEASE_SILENCE
from conveyor_runtime.reconcile import lease

FASTER = 5

if __name__ == "__main__":
    lease.RENEW_EVERY /= FASTER
    lease.SELF_FENCE /= FASTER
    for module in (liveness, lease):
        vars(module).update(LEASE_SILENCE=LEASE_SILENCE / FASTER)
    main()
