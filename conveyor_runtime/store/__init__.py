"""State with revisions: what is true, kept in one JetStream KV bucket so that several keys can change as one.

Every transition is one compare-and-set. Reads by key go to the stream's leader; lists come from the `View`, a cache
fed by the bucket's own changes. Nothing here decides: the rules of a run's life are in `engine`.
"""

from conveyor_runtime.store import keys
from conveyor_runtime.store.base import Change, Store, Stored, Write
from conveyor_runtime.store.kv import KvStore
from conveyor_runtime.store.letters import keep_dead_letter
from conveyor_runtime.store.logs import LogFollower, LogStore
from conveyor_runtime.store.memory import MemoryStore
from conveyor_runtime.store.state import Blob, Put, State
from conveyor_runtime.store.versioned import Versioned
from conveyor_runtime.store.view import View

__all__ = [
    "Blob",
    "Change",
    "KvStore",
    "LogFollower",
    "LogStore",
    "MemoryStore",
    "Put",
    "State",
    "Store",
    "Stored",
    "Versioned",
    "View",
    "Write",
    "keep_dead_letter",
    "keys",
]
