"""Trains: packets come out as they went in, and no bytes from a peer do harm."""

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bedsit.ipc import wire
from bedsit.ipc.errors import BedsitError
from bedsit.ipc.train import MAGIC, MOST, couple, is_train, pack_train, split_train
from bedsit.ipc.wire import MAX_PACKET, Kind

KIB = 1 << 10
_PACKETS = st.lists(st.binary(max_size=80), min_size=2, max_size=MOST)
_SIZES = st.lists(st.integers(48, 2 * KIB) | st.integers(30 * KIB, 34 * KIB) | st.just(MAX_PACKET), max_size=200)


def _train(lengths: Sequence[int], body: bytes, count: int | None = None, magic: int = MAGIC) -> bytes:
    """A train that claims these lengths, and that it has *count* packets."""
    return struct.pack(f"<HH{len(lengths)}I", magic, len(lengths) if count is None else count, *lengths) + body


def _is_malformed(data: bytes) -> bool:
    """Whether it is refused, as bytes and inside of something larger, which is not looked at."""
    codes = []
    for train in (data, bytearray(data), memoryview(b"\xee" * 9 + data + b"\xee" * 999)[9 : 9 + len(data)]):
        with pytest.raises(BedsitError) as caught:
            split_train(train)
        codes.append(caught.value.code)
    return set(codes) == {"wire.malformed"}


def test_the_bytes_of_a_train_never_change() -> None:
    """Router and worker may be of different builds for a moment: one train, byte by byte."""
    assert pack_train([b"one", b"", b"three"]).hex() == "d6be0300" + "030000000000000005000000" + b"onethree".hex()
    assert (MAGIC, MOST) == (0xBED6, 64)


@given(_PACKETS)
def test_packets_come_back_in_their_order(packets: list[bytes]) -> None:
    """Whatever is in them, also other trains; out of any kind of buffer, and with memory of their own."""
    train = pack_train(packets)
    assert is_train(train)
    assert split_train(train) == packets
    inside = bytearray(b"\xee" * 5 + train + b"\xee" * 5)
    split = split_train(memoryview(inside)[5:-5])
    inside[:] = bytes(len(inside))
    assert split == packets
    assert split_train(pack_train([train, train])) == [train, train]


def test_one_packet_travels_as_it_is() -> None:
    """And is no train, whatever its kind."""
    for kind in Kind:
        packet = wire.pack_packet(kind, 1, b"header", b"body")
        assert pack_train([packet]) is packet
        assert not is_train(packet)
        assert _is_malformed(packet)


@settings(deadline=None)
@given(_SIZES)
def test_what_is_coupled_is_all_of_it_in_order_and_fits(sizes: list[int]) -> None:
    """No more than 64 packets and 32 KiB, unless one is longer alone; and none could have gone with the one before."""
    packets = [bytes([index % 256]) * size for index, size in enumerate(sizes)]
    trains = list(couple(packets))
    assert [packet for train in trains for packet in train] == packets
    for train, after in zip(trains, [*trains[1:], None], strict=False):
        used = sum(map(len, train))
        assert 1 <= len(train) <= MOST
        assert used <= 32 * KIB or len(train) == 1
        assert after is None or len(train) == MOST or used + len(after[0]) > 32 * KIB
        packed = pack_train(train)
        assert len(packed) <= MAX_PACKET
        assert [packed] == list(train) if len(train) == 1 else split_train(packed) == list(train)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], []),
        ([48], [1]),
        ([48] * 64, [64]),
        ([48] * 65, [64, 1]),
        ([48] * 130, [64, 64, 2]),
        ([16 * KIB] * 2, [2]),
        ([16 * KIB, 16 * KIB + 1], [1, 1]),
        ([16 * KIB, 16 * KIB, 48], [2, 1]),
        ([MAX_PACKET] * 2, [1, 1]),
        ([48, MAX_PACKET, 48, 48], [1, 1, 2]),
    ],
    ids=range(10),
)
def test_the_limits_of_a_train_are_exact(sizes: list[int], expected: list[int]) -> None:
    """So many packets and bytes go together, and not one more."""
    assert [len(train) for train in couple([bytes(size) for size in sizes])] == expected


@pytest.mark.parametrize(
    "train",
    [
        b"",
        MAGIC.to_bytes(2, "little"),
        _train([], b""),
        _train([], b"")[:3],
        _train([4], b"four"),
        _train([0], b""),
        _train([], b"eightbyt", count=2),
        _train([1] * 65, b"x" * 65),
        _train([1, 1], b"xx", count=65),
        _train([1, 1], b"xx", count=0xFFFF),
        _train([1, 1], b"xx", count=1),
        _train([1, 1], b"xx", count=3),
        _train([1, 1, 1], b"xxx", count=2),
        _train([1, 1], b"xx", magic=wire.MAGIC),
        _train([1, 1], b"xx", magic=0),
        _train([1, 1], b"x"),
        _train([1, 1], b""),
        _train([1, 1], b"xxx"),
        _train([2, 2], b"xxx"),
        _train([0, 0], b"x"),
        _train([3, 0xFFFFFFFF], b"xx"),
        _train([0xFFFFFFFF, 0xFFFFFFFF], b""),
        _train([0x80000000, 0x80000002], b"xx"),
        _train([0xFFFFFFFF, 3], b"xx"),
        _train([1, 1], b"xx")[:11],
        _train([1, 1], b"xx")[:12],
        _train([1, MAX_PACKET], bytes(MAX_PACKET + 1)),
        _train([1, MAX_PACKET - 13], bytes(MAX_PACKET - 11)),
    ],
    ids=range(28),
)
def test_what_is_no_train_is_malformed(train: bytes) -> None:
    """Cut off, with bytes too many, too few or too many packets, and lengths that lie, overflow or add up elsewhere."""
    assert _is_malformed(train)


def test_the_longest_train_is_as_long_as_the_longest_packet() -> None:
    """One byte more is refused above."""
    train = _train([1, MAX_PACKET - 13], bytes(MAX_PACKET - 12))
    assert len(train) == MAX_PACKET
    assert [len(packet) for packet in split_train(train)] == [1, MAX_PACKET - 13]


@settings(max_examples=500)
@given(
    st.binary(max_size=200)
    | st.builds(_train, st.lists(st.integers(0, 40) | st.integers(0, 2**32 - 1), max_size=66), st.binary(max_size=300))
    | st.builds(_train, st.lists(st.integers(0, 3), max_size=5), st.binary(max_size=12), st.integers(0, 70))
)
def test_arbitrary_bytes_raise_nothing_but_our_error(data: bytes) -> None:
    """What is split makes the same train again, so that it was all there and nothing else was; the rest is refused."""
    try:
        packets = split_train(data)
    except BedsitError:
        assert _is_malformed(data)
    else:
        assert pack_train(packets) == data
        assert 2 <= len(packets) <= MOST
