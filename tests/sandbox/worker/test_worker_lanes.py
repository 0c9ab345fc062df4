"""A worker's lanes against a router that the test plays: batches, notes, cancelling, and routers that come and go."""

import gc
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import zmq

from bedsit.ipc import wire
from bedsit.ipc.fastlane import ROOM
from bedsit.ipc.seqpacket import send_bytes
from bedsit.ipc.slot import NOTE_BYTES, Note, Word, decode_note, encode_note
from bedsit.ipc.wire import MAX_PACKET, Kind
from bedsit.ipc.zmqlane import ZmqChannel
from bedsit.sandbox.worker.arenas import ArenaTable
from bedsit.sandbox.worker.lanes import Lanes, Order
from bedsit.sandbox.worker.tensors import tensor_at
from tests_support.routers import DEADLINE_S
from tests_support.slots import wait_until

PAGE = 4096
_READY = wire.pack_packet(Kind.READY, 0)


def _request(ident: int, left: int = 0) -> bytes:
    return wire.readdress(wire.pack_packet(Kind.REQUEST, 0, b"header", b"body"), Kind.REQUEST, ident, 7, left)


def _idents(batch: list[Order]) -> list[int]:
    return [order.fields[4] for order in batch]


class Slot:
    """The router's sockets in a slot's folder, the worker's lanes, and the connection between them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.arenas = ArenaTable()
        self._context = zmq.Context()
        self._zmq: ZmqChannel | None = None
        self._listener = self._listen()
        self.lanes = Lanes(str(folder), self.arenas)
        self.link = self._accept()

    def send(self, *packets: bytes, fds: tuple[int, ...] = ()) -> None:
        """Packets, or notes, from the router."""
        for packet in packets:
            send_bytes(self.link, packet, fds)

    def give(self, number: int, size: int = 4 * PAGE, claimed: int | None = None) -> None:
        """Hand over an arena; *claimed* is what the note says of its size."""
        fd = os.memfd_create("test-arena", os.MFD_CLOEXEC)
        os.ftruncate(fd, size)
        self.send(encode_note(Note(Word.GIVE, number, size if claimed is None else claimed)), fds=(fd,))
        os.close(fd)

    def recv(self) -> bytes:
        """The worker's next packet on the connection."""
        return self.link.recv(1 << 17)

    def mapped(self) -> int:
        """The number of the arena that the worker says it has mapped."""
        packet = self.recv()
        assert len(packet) == NOTE_BYTES
        note = decode_note(packet)
        assert note.word == Word.MAPPED
        return note.number

    def next(self, *, look: bool = False) -> list[Order]:
        """The worker's next batch, which is on its way already."""
        return self.lanes.next_batch(look=look)

    def meet(self) -> ZmqChannel:
        """Have the worker connect to a ZeroMQ lane."""
        lane = self._zmq = ZmqChannel(self._context, str(self.folder / "router.sock"), bind=True)
        self.send(encode_note(Note(Word.MEET)), _request(1))
        assert _idents(self.next()) == [1]
        assert self.recv_zmq() == _READY
        return lane

    def restart(self) -> None:
        """Be gone, and be another router; what the worker has of the old one it finds out when it reads."""
        self.vanish()
        self.appear()

    def vanish(self) -> None:
        """Be gone."""
        self._listener.close()
        self.link.close()
        if self._zmq is not None:
            self._zmq.close()
            self._zmq = None

    def appear(self) -> None:
        """Be there again. The worker connects when it reads next."""
        self._listener = self._listen()

    def meet_again(self, pool: ThreadPoolExecutor, **options: Any) -> Any:
        """Let the worker read, which brings it here; gives its batch to come."""
        batch = pool.submit(self.next, **options)
        self.link = self._accept()
        return batch

    def close(self) -> None:
        """End both sides."""
        self.vanish()
        self.arenas.clear()
        self.lanes._link.close()
        if self.lanes._zmq is not None:
            self.lanes._zmq.close()
        if self.lanes._epoll is not None:
            self.lanes._epoll.close()
        if self.lanes._context is not None:
            self.lanes._context.term()
        self._context.term()

    def recv_zmq(self) -> bytes:
        """The worker's next packet on the ZeroMQ lane."""
        assert self._zmq is not None
        packet = None
        while packet is None:
            packet = self._zmq.wait(DEADLINE_S)
        return packet

    def _listen(self) -> socket.socket:
        path = self.folder / "fd.sock"
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.settimeout(DEADLINE_S)
        listener.bind(str(path))
        listener.listen(4)
        return listener

    def _accept(self) -> socket.socket:
        link, _ = self._listener.accept()
        link.settimeout(DEADLINE_S)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        assert link.recv(1 << 17) == _READY
        return link


@pytest.fixture
def slot(tmp_path: Path) -> Iterator[Slot]:
    """A worker's lanes that have met their router."""
    slot = Slot(tmp_path)
    yield slot
    slot.close()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """A thread for the worker, where it has to wait for the router's next move."""
    with ThreadPoolExecutor(1) as pool:
        yield pool


def _count_descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


# --- requests and answers ---------------------------------------------------------------------------------------------


def test_a_request_comes_as_it_was_sent_and_its_answer_goes_back(slot: Slot) -> None:
    """Packet and fields, in memory of its own; the answer leaves on the connection."""
    slot.send(_request(1), _request(2))
    (first,) = slot.next()
    (second,) = slot.next()
    assert (bytes(first.packet), bytes(second.packet)) == (_request(1), _request(2))
    assert first.fields == wire.read_fields(_request(1))
    second.reply(b"answer to 2")
    first.reply(b"answer to 1")
    assert [slot.recv(), slot.recv()] == [b"answer to 2", b"answer to 1"]


def test_the_longest_packets_go_through(slot: Slot) -> None:
    """In both directions."""
    longest = wire.pack_packet(Kind.REQUEST, 5, bytes(MAX_PACKET - wire.ENVELOPE_BYTES))
    slot.send(longest)
    (order,) = slot.next()
    assert bytes(order.packet) == longest
    order.reply(longest)
    assert slot.recv() == longest


def test_packets_of_one_batch_are_handed_out_together(slot: Slot) -> None:
    """Those that say how many follow, until the last one; the next batch is not touched."""
    slot.send(*(_request(10 + n, 2 - n) for n in range(3)), _request(20), *(_request(30 + n, 1 - n) for n in range(2)))
    for look in (False, True, False):
        batch = slot.next(look=look)
        assert _idents(batch) in ([10, 11, 12], [20], [30, 31])
    assert not slot.lanes._inbox


def test_a_batch_that_is_not_complete_is_waited_for(slot: Slot, pool: ThreadPoolExecutor) -> None:
    """Split over packets that come when they come, with notes in between."""
    slot.send(_request(1, 2))
    batch = pool.submit(slot.next)
    slot.give(4)
    assert slot.mapped() == 4
    slot.send(_request(2, 1))
    assert not batch.done()
    slot.send(encode_note(Note(Word.FORGET, 4)), _request(3))
    assert _idents(batch.result(DEADLINE_S)) == [1, 2, 3]
    assert slot.arenas.find(4) is None


@pytest.mark.parametrize(
    "garbage",
    [
        b"x",
        bytes(15),
        bytes(17),
        bytes(47),
        bytes(48),
        b"\xff" * 1000,
        bytes(MAX_PACKET),
        _request(9) + bytes(MAX_PACKET),
        b"\xff" * NOTE_BYTES,
        encode_note(Note(0)),
        encode_note(Note(99, 5, 5)),
        encode_note(Note(Word.MAPPED, 5)),
        encode_note(Note(Word.GIVE, 5, PAGE)),
        encode_note(Note(Word.FORGET, 5)),
    ],
    ids=range(14),
)
def test_what_is_no_packet_is_dropped(slot: Slot, garbage: bytes) -> None:
    """The router sends no such thing; if it did, the next request would be as good as ever."""
    before = _count_descriptors()
    slot.send(garbage, _request(1))
    assert len(garbage) <= 2 * ROOM
    assert _idents(slot.next()) == [1]
    assert _count_descriptors() == before


def test_a_worker_waits_for_its_router(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    """Started before there is one, it connects as soon as there is, and says that it is ready."""
    waiting = pool.submit(Lanes, str(tmp_path), ArenaTable())
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.settimeout(DEADLINE_S)
        listener.bind(str(tmp_path / "fd.sock"))
        assert not waiting.done()
        listener.listen(1)
        link, _ = listener.accept()
        with link:
            assert link.recv(100) == _READY
            waiting.result(DEADLINE_S)._link.close()


# --- arenas -----------------------------------------------------------------------------------------------------------


def test_an_arena_is_mapped_acknowledged_and_forgotten(slot: Slot) -> None:
    """Its bytes are the router's; its descriptor is held by the mapping alone, and gone with it."""
    before = _count_descriptors()
    fd = os.memfd_create("test-arena", os.MFD_CLOEXEC)
    os.ftruncate(fd, 2 * PAGE)
    os.pwrite(fd, b"hello", PAGE)
    slot.send(encode_note(Note(Word.GIVE, 4, 2 * PAGE)), fds=(fd,))
    os.close(fd)
    slot.send(_request(1))
    slot.next()
    assert slot.mapped() == 4
    arena = slot.arenas.find(4)
    assert arena is not None
    assert (len(arena.pages), arena.pages[PAGE : PAGE + 5]) == (2 * PAGE, b"hello")
    assert tensor_at("uint8", (5,), PAGE, arena).data_ptr() == arena.address + PAGE
    del arena
    assert _count_descriptors() == before + 1
    slot.send(encode_note(Note(Word.FORGET, 4)), _request(2))
    slot.next()
    assert slot.arenas.find(4) is None
    assert _count_descriptors() == before


@pytest.mark.parametrize("claimed", [5 * PAGE, 1 << 40, (1 << 63) - 1])
def test_an_arena_that_cannot_be_mapped_is_not_acknowledged(slot: Slot, claimed: int) -> None:
    """Nothing of it stays, and the next one is mapped: only its own requests will fail."""
    before = _count_descriptors()
    slot.give(4, 4 * PAGE, claimed)
    slot.give(5)
    slot.send(_request(1))
    slot.next()
    assert slot.mapped() == 5
    assert slot.arenas.find(4) is None
    assert slot.arenas.find(5) is not None
    slot.send(encode_note(Note(Word.FORGET, 5)), _request(2))
    slot.next()
    assert _count_descriptors() == before


def test_an_arena_given_again_replaces_the_one_before(slot: Slot) -> None:
    """Numbers are the router's; the old mapping goes when nobody looks at it any more."""
    before = _count_descriptors()
    slot.give(4, PAGE)
    slot.give(4, 3 * PAGE)
    slot.send(_request(1))
    slot.next()
    assert [slot.mapped(), slot.mapped()] == [4, 4]
    arena = slot.arenas.find(4)
    assert arena is not None
    assert len(arena.pages) == 3 * PAGE
    assert _count_descriptors() == before + 1


@pytest.mark.parametrize(
    "packet",
    [
        encode_note(Note(Word.FORGET, 1)),
        encode_note(Note(Word.MAPPED, 1)),
        encode_note(Note(77)),
        _request(9),
        wire.pack_packet(Kind.CANCEL, 9),
        b"garbage",
        encode_note(Note(Word.GIVE, 4, 1 << 40)),
    ],
    ids=range(7),
)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_descriptors_that_nobody_asked_for_are_closed(slot: Slot, packet: bytes, count: int) -> None:
    """Beside whatever they come: none stays open."""
    before = _count_descriptors()
    fds = [os.memfd_create("surplus", os.MFD_CLOEXEC) for _ in range(count)]
    slot.send(packet, fds=tuple(fds))
    for fd in fds:
        os.close(fd)
    slot.send(_request(1))
    while _idents(slot.next()) != [1]:
        pass
    assert _count_descriptors() == before


def test_a_surplus_descriptor_beside_an_arena_is_closed(slot: Slot) -> None:
    """The first one is the arena."""
    before = _count_descriptors()
    fds = [os.memfd_create("test-arena", os.MFD_CLOEXEC) for _ in range(2)]
    for fd in fds:
        os.ftruncate(fd, PAGE)
    slot.send(encode_note(Note(Word.GIVE, 4, PAGE)), fds=tuple(fds))
    for fd in fds:
        os.close(fd)
    slot.send(_request(1))
    slot.next()
    assert slot.mapped() == 4
    assert _count_descriptors() == before + 1


def test_a_tensor_keeps_a_mapping_that_was_forgotten() -> None:
    """The last view of it unmaps it."""
    table = ArenaTable()
    fd = os.memfd_create("test-arena", os.MFD_CLOEXEC)
    os.ftruncate(fd, PAGE)
    table.give(3, fd, PAGE)
    os.close(fd)
    arena = table.find(3)
    assert arena is not None
    x = tensor_at("float32", (10,), 0, arena).fill_(2.0)
    del arena
    table.clear()
    gc.collect()
    assert table.find(3) is None
    assert x.equal(torch.full((10,), 2.0))


# --- cancelling -------------------------------------------------------------------------------------------------------


def test_a_request_that_was_withdrawn_is_known_before_it_runs(slot: Slot) -> None:
    """Where the call before took long, all that has come is looked at; each cancelled request is told once."""
    slot.send(_request(1), _request(2), _request(3), wire.pack_packet(Kind.CANCEL, 2), wire.pack_packet(Kind.CANCEL, 1))
    for is_withdrawn in (True, True, False):
        (order,) = slot.next(look=True)
        assert slot.lanes.is_cancelled(order) == is_withdrawn
        assert not slot.lanes.is_cancelled(order)


def test_a_request_that_is_withdrawn_while_it_waits_for_its_turn_is_known(slot: Slot) -> None:
    """A cancel that is read after it was handed out counts until the next one is."""
    slot.send(_request(1))
    (order,) = slot.next()
    slot.send(wire.pack_packet(Kind.CANCEL, 1))
    assert not slot.lanes.hear()
    assert slot.lanes.is_cancelled(order)
    slot.send(wire.pack_packet(Kind.CANCEL, 1), _request(2))
    assert not slot.lanes.hear()
    slot.next()
    assert slot.lanes._cancelled == set()


def test_a_cancel_of_what_is_not_there_is_forgotten(slot: Slot) -> None:
    """It ran already, or never came: nothing is kept for an id that may never come again."""
    for ident in range(100):
        slot.send(wire.pack_packet(Kind.CANCEL, ident))
    slot.send(_request(5))
    (order,) = slot.next(look=True)
    assert not slot.lanes.is_cancelled(order)
    slot.send(wire.pack_packet(Kind.CANCEL, 5), _request(6))
    (order,) = slot.next()
    assert not slot.lanes.is_cancelled(order)
    assert slot.lanes._cancelled == set()


def test_without_a_look_only_the_next_packet_is_read(slot: Slot) -> None:
    """A short call is not held up by looking: what comes behind the request stays where it is."""
    slot.send(_request(1), wire.pack_packet(Kind.CANCEL, 1), _request(2))
    (order,) = slot.next()
    assert not slot.lanes.is_cancelled(order)
    assert not slot.lanes._inbox


def test_a_part_of_a_batch_can_be_cancelled(slot: Slot) -> None:
    """The others of the batch run."""
    slot.send(*(_request(n, 3 - n) for n in range(1, 4)), wire.pack_packet(Kind.CANCEL, 2))
    batch = slot.next(look=True)
    assert [slot.lanes.is_cancelled(order) for order in batch] == [False, True, False]


def test_looking_takes_no_more_than_a_few_packets_ahead(slot: Slot) -> None:
    """What the worker holds is bounded; what is not taken yet stays in the kernel, in its order."""
    slot.send(*(_request(ident) for ident in range(200)))
    for ident in range(200):
        assert _idents(slot.next(look=True)) == [ident]
        assert len(slot.lanes._inbox) < 64


# --- waiting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_zmq", [False, True])
def test_who_waits_hears_notes_and_goes_on_waiting(slot: Slot, with_zmq: bool) -> None:  # noqa: FBT001
    """A client that leaves after its last request keeps nobody awake; a request is there at once."""
    if with_zmq:
        slot.meet()
    assert not slot.lanes.wait(0.01)
    slot.give(4)
    assert not slot.lanes.wait(0.05)
    assert slot.mapped() == 4
    slot.send(encode_note(Note(Word.FORGET, 4)))
    assert not slot.lanes.wait(0.05)
    assert slot.arenas.find(4) is None
    slot.send(_request(1))
    assert slot.lanes.wait(DEADLINE_S)
    assert slot.lanes.wait(DEADLINE_S)
    assert _idents(slot.next()) == [1]


def test_who_waits_hears_of_what_came_before_on_either_lane(slot: Slot) -> None:
    """ZeroMQ says once that something has come: whoever only slept would sleep on."""
    lane = slot.meet()
    for ident in (1, 2):
        assert lane.send(_request(ident))
    wait_until(lambda: slot.lanes._zmq is not None and slot.lanes._zmq.has_packets(), "it has arrived")
    assert slot.lanes.wait(DEADLINE_S)
    assert [_idents(slot.next()) for _ in range(2)] == [[1], [2]]
    slot.send(_request(3))
    assert slot.lanes.wait(DEADLINE_S)
    assert _idents(slot.next()) == [3]


def test_who_waits_meets_the_next_router(slot: Slot, pool: ThreadPoolExecutor) -> None:
    """As whoever receives does."""
    slot.restart()
    waited = pool.submit(slot.lanes.wait, DEADLINE_S)
    slot.link = slot._accept()
    slot.send(_request(1))
    assert waited.result(DEADLINE_S)
    assert _idents(slot.next()) == [1]


# --- routers that come and go -----------------------------------------------------------------------------------------


def test_another_router_starts_with_nothing_of_the_last_one(slot: Slot, pool: ThreadPoolExecutor) -> None:
    """Requests, cancels and arenas are forgotten; ids mean what the new router means by them."""
    slot.give(4)
    slot.send(_request(1), _request(2), _request(3), wire.pack_packet(Kind.CANCEL, 2))
    assert _idents(slot.next(look=True)) == [1]
    assert slot.arenas.find(4) is not None
    assert slot.lanes._cancelled == {2}
    slot.restart()
    batch = slot.meet_again(pool, look=True)
    slot.send(_request(2))
    (order,) = batch.result(DEADLINE_S)
    assert order.fields[4] == 2
    assert not slot.lanes.is_cancelled(order)
    assert slot.arenas.find(4) is None
    order.reply(b"to the new one")
    assert slot.recv() == b"to the new one"


def test_requests_of_a_router_that_is_gone_are_dropped_where_that_is_known(
    slot: Slot, pool: ThreadPoolExecutor
) -> None:
    """Whoever looks sees the end, and does not run what nobody waits for."""
    slot.send(_request(1), _request(2), _request(3))
    assert _idents(slot.next(look=True)) == [1]
    assert len(slot.lanes._inbox) == 2
    slot.restart()
    batch = slot.meet_again(pool, look=True)
    slot.send(_request(7))
    assert _idents(batch.result(DEADLINE_S)) == [7]
    assert not slot.lanes._inbox


def test_half_a_batch_of_a_router_that_is_gone_is_dropped(slot: Slot, pool: ThreadPoolExecutor) -> None:
    """The next router's batch is all its own."""
    slot.send(_request(1, 2), _request(2, 1))
    batch = pool.submit(slot.next)
    slot.restart()
    slot.link = slot._accept()
    slot.send(_request(8, 1), _request(9))
    assert _idents(batch.result(DEADLINE_S)) == [8, 9]


def test_an_answer_to_a_router_that_is_gone_goes_nowhere(slot: Slot, pool: ThreadPoolExecutor) -> None:
    """It is no error, and the next router does not get it."""
    slot.send(_request(1))
    (order,) = slot.next()
    slot.vanish()
    for _ in range(3):
        order.reply(b"too late")
    slot.appear()
    batch = slot.meet_again(pool)
    slot.send(_request(2))
    (order,) = batch.result(DEADLINE_S)
    order.reply(b"in time")
    assert slot.recv() == b"in time"


@pytest.mark.parametrize("with_zmq", [False, True])
def test_many_routers_leave_nothing_open(slot: Slot, pool: ThreadPoolExecutor, with_zmq: bool) -> None:  # noqa: FBT001
    """Each with an arena, a request and perhaps a ZeroMQ lane of its own; those of all but the last are closed."""

    def live() -> None:
        if with_zmq:
            slot.meet()
        slot.give(4)
        slot.send(_request(1))
        assert _idents(slot.next()) == [1]
        assert slot.mapped() == 4

    live()
    counts = []
    for _ in range(10):
        slot.restart()
        batch = slot.meet_again(pool)
        slot.send(_request(2))
        assert _idents(batch.result(DEADLINE_S)) == [2]
        live()
        counts.append(_count_descriptors())
    # libzmq closes in a thread of its own.
    wait_until(lambda: _count_descriptors() <= counts[0], "nothing more is open than after the first")


# --- the ZeroMQ lane --------------------------------------------------------------------------------------------------


def test_each_answer_goes_the_way_its_request_came(slot: Slot) -> None:
    """On the connection or on the ZeroMQ lane."""
    lane = slot.meet()
    for turn in range(20):
        assert lane.send(_request(100 + turn))
        (order,) = slot.next()
        order.reply(b"zmq %d" % turn)
        assert slot.recv_zmq() == b"zmq %d" % turn
        slot.send(_request(200 + turn))
        (order,) = slot.next()
        order.reply(b"fast %d" % turn)
        assert slot.recv() == b"fast %d" % turn


def test_both_lanes_wake_a_worker_that_waits(slot: Slot, pool: ThreadPoolExecutor) -> None:
    """Whatever it was that came last, and however the last answer went."""
    lane = slot.meet()

    def serve() -> int:
        (order,) = slot.next()
        order.reply(b"here")
        return int(order.fields[4])

    for turn, way in enumerate("zfzzffzfzfffzzz"):
        served = pool.submit(serve)
        if way == "z":
            assert lane.send(_request(turn))
            assert slot.recv_zmq() == b"here"
        else:
            slot.send(_request(turn))
            assert slot.recv() == b"here"
        assert served.result(DEADLINE_S) == turn


def test_being_told_twice_to_meet_is_being_told_once(slot: Slot) -> None:
    """There is one lane, and one READY."""
    lane = slot.meet()
    slot.send(encode_note(Note(Word.MEET)), encode_note(Note(Word.MEET)), _request(5))
    assert _idents(slot.next()) == [5]
    assert lane.send(_request(6))
    (order,) = slot.next()
    order.reply(b"still here")
    assert slot.recv_zmq() == b"still here"


def test_a_full_zmq_lane_does_not_hide_the_connection(slot: Slot) -> None:
    """Hundreds of requests on one: what comes on the other is handed out after a few, an arena among them."""
    lane = slot.meet()
    for ident in range(200):
        assert lane.send(_request(ident))
    slot.give(4)
    slot.send(_request(1000))
    assert 1000 in [_idents(slot.next())[0] for _ in range(12)]
    assert slot.arenas.find(4) is not None


def test_a_full_connection_does_not_hide_the_zmq_lane(slot: Slot) -> None:
    """The other way round."""
    lane = slot.meet()
    slot.send(*(_request(ident) for ident in range(200)))
    assert lane.send(_request(1000))
    wait_until(lambda: slot.lanes._zmq is not None and slot.lanes._zmq.has_packets(), "it has arrived")
    assert 1000 in [_idents(slot.next())[0] for _ in range(12)]


def test_a_batch_is_of_one_lane(slot: Slot, pool: ThreadPoolExecutor) -> None:
    """A request that arrives on the other lane in the middle of a batch is another batch, whole and by itself."""
    lane = slot.meet()
    slot.send(_request(1, 2), _request(2, 1))
    assert lane.send(_request(50, 1))
    assert lane.send(_request(51))
    batch = pool.submit(slot.next)
    wait_until(lambda: len(slot.lanes._inbox) == 2, "the other lane's requests wait")
    slot.send(_request(3), _request(4))
    assert _idents(batch.result(DEADLINE_S)) == [1, 2, 3]
    rest = [_idents(slot.next()) for _ in range(2)]
    assert sorted(rest) == [[4], [50, 51]]


def test_cancels_reach_requests_of_both_lanes(slot: Slot) -> None:
    """They come on the connection, whatever way the request came, and are known before it runs."""
    lane = slot.meet()
    assert lane.send(_request(12))
    wait_until(lambda: slot.lanes._zmq is not None and slot.lanes._zmq.has_packets(), "it has arrived")
    slot.send(_request(11), wire.pack_packet(Kind.CANCEL, 12), wire.pack_packet(Kind.CANCEL, 11))
    orders = []
    for _ in range(2):
        (order,) = slot.next(look=True)
        orders.append(order)
        assert slot.lanes.is_cancelled(order)
    assert sorted(_idents(orders)) == [11, 12]


def test_the_next_router_is_met_anew(slot: Slot, pool: ThreadPoolExecutor) -> None:
    """The ZeroMQ lane goes with its router; without a word there is none, and late answers for it go nowhere."""
    lane = slot.meet()
    assert lane.send(_request(5))
    (order,) = slot.next()
    slot.restart()
    batch = slot.meet_again(pool)
    slot.send(_request(6))
    (last,) = batch.result(DEADLINE_S)
    last.reply(b"fast")
    assert slot.recv() == b"fast"
    assert slot.lanes._zmq is None
    order.reply(b"of no use")
    lane = slot.meet()
    assert lane.send(_request(7))
    (order,) = slot.next()
    order.reply(b"zmq")
    assert slot.recv_zmq() == b"zmq"


def test_answers_wait_for_room(slot: Slot, pool: ThreadPoolExecutor) -> None:
    """A router that reads nothing for a while gets every answer in the end, on either lane."""
    lane = slot.meet()
    packet = wire.pack_packet(Kind.RESPONSE, 1, bytes(60_000))

    def answer(send: Callable[[bytes], bool | None], receive: Callable[[], bytes]) -> None:
        send(_request(1))
        (order,) = slot.next()
        answering = pool.submit(lambda: [order.reply(packet) for _ in range(700)])
        assert all(receive() == packet for _ in range(700))
        answering.result(DEADLINE_S)

    answer(slot.send, slot.recv)
    answer(lane.send, slot.recv_zmq)
