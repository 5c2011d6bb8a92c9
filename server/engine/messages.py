"""Messages on the socket between an HTTP worker and an engine (msgpack); pixels go through shared memory."""

import msgspec

from server.engine.scheduler import Priority
from server.errors import Code


class Submit(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """Run the image in `slot`. Ids are unique within one worker process; times are of the monotonic clock."""

    id: int
    slot: int
    model: str
    """its id in the catalogue"""
    top_k: int | None
    """None: the logits of all classes"""
    arrived_s: float
    deadline_s: float
    quarantined: bool
    priority: Priority
    include: int = 0
    """`Extras` as a number"""


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The client no longer waits for this job."""

    id: int


class Answer(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The classes of one job."""

    id: int
    probabilities: bytes
    """float32[k], native byte order, best first; empty if the logits were requested instead"""
    indices: bytes
    """int32[k]"""
    logits: bytes
    """float32[num_classes]; empty unless requested"""
    queue_s: float
    inference_s: float
    batch_size: int
    features: bytes = b""
    """float32[C]; empty unless requested"""
    activation_maps: bytes = b""
    """float32[k, h, w]; empty unless requested"""


class Failure(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """The job ended without classes."""

    id: int
    code: Code
    detail: str


class Dropped(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """The job was cancelled before it ran; its slot is free."""

    id: int


Request = Submit | Cancel
Reply = Answer | Failure | Dropped

encode = msgspec.msgpack.Encoder().encode
decode_request = msgspec.msgpack.Decoder(Request).decode
decode_replies = msgspec.msgpack.Decoder(list[Reply]).decode
