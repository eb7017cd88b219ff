"""How things are called: namespaces by what belongs together, task ids within them."""

from __future__ import annotations

import hashlib
import re

from conveyor_runtime.errors import TerminalError

__all__ = ["check_task_id", "namespace", "run_of"]

_TASK_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_MAX_TOKEN = 64
_UUID = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})(?:_.*)?")


def namespace(installation: str, run_id: str) -> str:
    """The namespace of a run: `cv-<installation>-<run>`, at most 132 characters of `[a-z0-9_-]`.

    Different pairs give different names: an installation never contributes a `-`, and a part that had to be changed
    or cut (at 64 characters) gets 8 hex digits of its hash.
    """
    return f"cv-{_token(installation, '_')}-{_token(run_id, '-_')}"


def run_of(installation: str, ns: str) -> str | None:
    """The run a namespace's name carries, or that of the namespace it is a part of (`<namespace>_...`).

    None if it is not of this installation, or if the run's id is no UUID: another kind may have been changed or cut.
    """
    prefix = namespace(installation, "").removesuffix(_token("", "-_"))
    found = _UUID.fullmatch(ns.removeprefix(prefix)) if ns.startswith(prefix) else None
    return found.group(1) if found else None


def check_task_id(task_id: str) -> str:
    """The id itself, or `TerminalError` if it is not 1 to 63 of `[A-Za-z0-9_-]`, beginning with a letter or digit."""
    if not _TASK_ID.fullmatch(task_id):
        raise TerminalError(f"task id {task_id!r} must be 1 to 63 characters of [A-Za-z0-9_-]")
    return task_id


def _token(text: str, extra: str) -> str:
    if text and len(text) <= _MAX_TOKEN and re.fullmatch(rf"[a-z0-9][a-z0-9{extra}]*", text):
        return text
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
    cleaned = re.sub(rf"[^a-z0-9{extra}]", "_", text.lower()).lstrip("_-")
    return f"{cleaned[: _MAX_TOKEN - 9] or 'x'}_{digest}"
