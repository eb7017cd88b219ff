"""The only room that talks NATS (the store, above, builds its keys on it).

The law of the room: foreign errors end here, as BusError and its kin. What goes to JetStream is raw JSON and
what comes back is read as such, because the client's config classes drop what they do not know. A write leaves
on the connection that lives now or never. Who asks for several writes at once gets them from a committer, who
asks for messages from a puller (work, acknowledged) or a tail (a view, not acknowledged). Nothing here knows
what a run, a step or a resource is, beyond the spelling of their subjects.
"""

from conveyor_runtime.bus.connection import Bus
from conveyor_runtime.bus.errors import ApiError, PayloadTooLarge
from conveyor_runtime.bus.publisher import CommitStats, Committer
from conveyor_runtime.bus.puller import Delivery, Puller, Slots
from conveyor_runtime.bus.server import EmbeddedServer
from conveyor_runtime.bus.tail import Tail
from conveyor_runtime.bus.wire import Message, Receipt, StoredMsg

__all__ = [
    "ApiError",
    "Bus",
    "CommitStats",
    "Committer",
    "Delivery",
    "EmbeddedServer",
    "Message",
    "PayloadTooLarge",
    "Puller",
    "Receipt",
    "Slots",
    "StoredMsg",
    "Tail",
]
