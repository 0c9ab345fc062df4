"""Several packets in one, between a router and a worker: who has more than one to send pays for one message only.

    0       2       4
    ┌───────┬───────┬───────────────┬──────────────────────────┐
    │ magic │ count │ count lengths │ the packets, end to end  │   at most MAX_PACKET bytes in all
    └───────┴───────┴───────────────┴──────────────────────────┘

The packets keep the order in which they would have gone alone. What each of them holds is for its reader to check;
only the train itself is checked here.
"""

import struct
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Final

from bedsit.ipc.errors import error
from bedsit.ipc.wire import MAX_PACKET

MAGIC: Final = 0xBED6
MOST: Final = 64  # packets of one train; one alone travels as it is
_LEAST: Final = 2
_BYTES: Final = 32 << 10  # of packets in one train, as it is made here

_LENGTHS: Final = tuple(struct.Struct(f"<HH{count}I") for count in range(MOST + 1))
_HEAD: Final = struct.Struct("<HH")
_MARK: Final = MAGIC.to_bytes(2, "little")


def pack_train(packets: Sequence[bytes]) -> bytes:
    """A train of packets that ``couple`` has put together; a single one stays as it is."""
    count = len(packets)
    if count < _LEAST:
        return packets[0]
    return b"".join((_LENGTHS[count].pack(MAGIC, count, *map(len, packets)), *packets))


def is_train(packet: bytes | bytearray | memoryview) -> bool:
    """Whether this is one, by how it begins."""
    return packet[:2] == _MARK


def split_train(train: bytes | bytearray | memoryview) -> list[bytes]:
    """The packets of a train, copied out of it. Raises ``wire.malformed`` when it is none."""
    size = len(train)
    if not _HEAD.size <= size <= MAX_PACKET:
        raise error("wire.malformed", f"a train of {size} bytes")
    magic, count = _HEAD.unpack_from(train)
    if magic != MAGIC or not _LEAST <= count <= MOST or size < _LENGTHS[count].size:
        raise error("wire.malformed", "not a train of packets")
    lengths = _LENGTHS[count].unpack_from(train)[2:]
    ends = list(accumulate(lengths, initial=_LENGTHS[count].size))
    if ends[-1] != size:
        raise error("wire.malformed", "a train is not as long as its packets")
    return [bytes(train[start:end]) for start, end in pairwise(ends)]


def couple(packets: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """What can go together of *packets*, in order: as many as fit, or one that is too long for company."""
    first = used = 0
    for index, packet in enumerate(packets):
        used += len(packet)
        if index > first and (used > _BYTES or index - first == MOST):
            yield packets[first:index]
            first, used = index, len(packet)
    if packets:
        yield packets[first:]
