"""What the daemon and a worker say to each other, through the slot's init, which forwards it unread.

daemon → worker   one packet, once: the assignment (`encode_assignment`), with the artifacts' descriptors beside it
worker → daemon   reports: 3 bytes (kind, model's index in the assignment) and a text that the daemon never parses

router ↔ worker   over the slot's own SEQPACKET socket: packets of `bedsit.ipc.wire`, and between them notes, which are
                  shorter than any packet: an arena's descriptor and its acknowledgement, the wish for a ZeroMQ lane,
                  and the words about turns that are not in the lease page (`bedsit.ipc.leasepage`)
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
    READY = 5  # blank, and the device that the slot was born for works; the text is what does not, if anything


class ModelToLoad(NamedTuple):
    """One model version of an assignment. Its artifact is the descriptor at the same index."""

    number: int
    name: str
    version: int
    size: int


class Assignment(NamedTuple):
    """What a blank worker becomes: this tenant's, with these models, on that many threads.

    Its models leave the GPU that they are on after *doze_s* seconds without a request; 0: never.
    """

    tenant: str
    threads: int
    models: tuple[ModelToLoad, ...]
    doze_s: float = 0.0


def encode_assignment(assignment: Assignment) -> bytes:
    """The assignment as msgpack."""
    data: bytes = msgpack.packb(assignment)
    return data


def decode_assignment(data: bytes) -> Assignment:
    """Read an assignment; it comes from the daemon, through our init. Raises ``wire.malformed``."""
    try:
        tenant, threads, models, doze_s = decode_body(data)
        return Assignment(tenant, threads, tuple(ModelToLoad(*model) for model in models), doze_s)
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


class Word(IntEnum):
    """Words of notes between router and worker."""

    GIVE = 1  # router → worker: an arena, its memfd beside the note
    FORGET = 2  # router → worker: that arena is of no further use
    MAPPED = 3  # worker → router: that arena is mapped
    MEET = 4  # router → worker: connect to the ZeroMQ lane as well
    RESUME = 5  # router → worker: look at the lease page
    YIELD = 6  # worker → router: the turn of that epoch is over, and its batch is not
    END = 7  # worker → router: the batch of that epoch has run; its answers follow


class Note(NamedTuple):
    """One word, about an arena or an epoch where it is about one."""

    word: int
    number: int = 0
    size: int = 0


_NOTE: Final = struct.Struct("<BxxxIQ")
NOTE_BYTES: Final = _NOTE.size


def encode_note(note: Note) -> bytes:
    """The note as 16 bytes."""
    return _NOTE.pack(*note)


def decode_note(data: bytes) -> Note:
    """The note in *data*; word 0 when it is none."""
    return Note(*_NOTE.unpack(data)) if len(data) == NOTE_BYTES else Note(0)
