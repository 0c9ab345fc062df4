"""What the daemon and a worker say to each other, through the slot's init, which forwards it unread.

daemon → worker   one packet, once: the assignment (`encode_assignment`), with the artifacts' descriptors beside it
worker → daemon   reports: 3 bytes (kind, model's index in the assignment) and a text that the daemon never parses

router ↔ worker   beside the lane, over the slot's descriptor socket: an arena's descriptor and its acknowledgement
"""

import struct
from enum import IntEnum
from typing import Final, NamedTuple

import msgpack

from bedsit.ipc.errors import error
from bedsit.ipc.frames import decode_body

_REPORT: Final = struct.Struct("<BH")
MAX_REPORT: Final = 64 << 10


class Report(IntEnum):
    """What a worker reports."""

    LOADED = 1  # the text is the manifest
    FAILED = 2  # the text is "code\nmessage"
    SERVING = 3  # everything is loaded and the lanes are connected
    PROGRESS = 4  # the text is a phase, for people


class ModelToLoad(NamedTuple):
    """One model version of an assignment. Its artifact is the descriptor at the same index."""

    number: int
    name: str
    version: int
    size: int


class Assignment(NamedTuple):
    """What a blank worker becomes: this tenant's, with these models, on that many threads."""

    tenant: str
    threads: int
    models: tuple[ModelToLoad, ...]


def encode_assignment(assignment: Assignment) -> bytes:
    """The assignment as msgpack."""
    data: bytes = msgpack.packb(assignment)
    return data


def decode_assignment(data: bytes) -> Assignment:
    """Read an assignment; it comes from the daemon, through our init. Raises ``wire.malformed``."""
    try:
        tenant, threads, models = decode_body(data)
        return Assignment(tenant, threads, tuple(ModelToLoad(*model) for model in models))
    except (TypeError, ValueError):
        raise error("wire.malformed", "not an assignment") from None


def encode_report(kind: Report, index: int = 0, text: bytes = b"") -> bytes:
    """A worker's report."""
    return _REPORT.pack(kind, index) + text


def decode_report(data: bytes) -> tuple[int, int, bytes]:
    """(kind, index, text) of a worker's report; kind 0 when it is too short to be one."""
    if len(data) < _REPORT.size:
        return 0, 0, b""
    kind, index = _REPORT.unpack_from(data)
    return kind, index, data[_REPORT.size :]


class ArenaWord(IntEnum):
    """Words on a slot's descriptor socket."""

    GIVE = 1  # router → worker, the memfd beside it
    FORGET = 2  # router → worker
    MAPPED = 3  # worker → router


class ArenaMessage(NamedTuple):
    """One word about one arena."""

    word: int
    number: int
    size: int = 0


_ARENA: Final = struct.Struct("<BxxxIQ")
ARENA_MESSAGE_BYTES: Final = _ARENA.size


def encode_arena(message: ArenaMessage) -> bytes:
    """The message as 16 bytes."""
    return _ARENA.pack(*message)


def decode_arena(data: bytes) -> ArenaMessage:
    """The message in *data*; word 0 when it is none."""
    return ArenaMessage(*_ARENA.unpack(data)) if len(data) == _ARENA.size else ArenaMessage(0, 0)
