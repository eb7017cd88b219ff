"""Pure checks: who may call, and what may be shown."""

from conveyor_runtime.security.redaction import MASK, Redactor, redact_url
from conveyor_runtime.security.tokens import new_token, same_token

__all__ = ["MASK", "Redactor", "new_token", "redact_url", "same_token"]
