"""HTTP: the control plane's face. Parses, calls `engine.Intake`, shows what it says; decides nothing.

One module per noun. What all share: `deps` (what routes are given), `documents` (bodies), `problems` (errors), `gate`
and `auth` (before every route), `follow` (live logs, for SSE and WebSocket alike).
"""

from conveyor_runtime.api.app import create_app
from conveyor_runtime.api.deps import Services

__all__ = ["Services", "create_app"]
