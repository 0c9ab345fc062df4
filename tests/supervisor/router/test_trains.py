"""Several packets in one message between router and worker: when they go together, and what a worker can make of it.

Most tests take a router in this process through its turns, one at a time.
"""

import socket
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from bedsit.ipc import wire
from bedsit.ipc.door import PROTOCOL
from bedsit.ipc.seqpacket import close_all, recv_bytes, recv_packet, send_packet
from bedsit.ipc.slot import NOTE_BYTES
from bedsit.ipc.train import MAGIC, MOST, is_train, pack_train, split_train
from bedsit.ipc.wire import Kind
from tests.fuzz.house import DONTWAIT, House, make_tenant

BATCHED = 2  # the version of the model that takes four rows at once
MOMENT_NS = 3_000_000
ROW = wire.encode_tensor("float32", (1,), wire.Place.INLINE, 0)

both_lanes = pytest.mark.parametrize("lane", ["fast", "zmq"])


class Client:
    """A session on the fast lane, by hand."""

    def __init__(self, house: House) -> None:
        self.link = house.knock()
        send_packet(self.link, {"op": "open", "v": PROTOCOL, "tenant": "acme", "key": None, "lane": "fast"})
        house.turn(2)
        opened, fds = recv_packet(self.link, 1)
        close_all(fds)
        assert opened is not None
        self.number = opened["arena"]

    def request(self, ident: int, version: int = 1) -> bytes:
        """A request of one row."""
        fields = {"tensors": 1, "model": 1, "model_version": version, "flags": wire.Flag.PINNED, "arena": self.number}
        return wire.pack_packet(Kind.REQUEST, ident, ROW, b"ping", rows=1, **fields)

    def ask(self, ident: int, version: int = 1) -> bytes:
        """The same, sent."""
        packet = self.request(ident, version)
        self.link.send(packet, DONTWAIT)
        return packet

    def heard(self) -> list[int]:
        """The ids of the answers that have come, each with tensors."""
        idents = []
        while True:
            try:
                kind, ident = wire.read_route(self.link.recv(1 << 17, DONTWAIT))
            except BlockingIOError:
                return idents
            assert kind == Kind.RESPONSE
            idents.append(ident)


class Scene:
    """A tenant with one worker, which is the test, and clients."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.tenant = make_tenant("acme", 1, max_inflight=500, queue_max=500, sessions_max=500)
        house.apply([self.tenant], [house.make_slot("s0", "acme")])
        self.worker = self.work("s0")
        self.slot = house.router.slots["s0"]
        self.clients: list[Client] = []

    def work(self, slot: str) -> socket.socket:
        """Be the worker of a slot."""
        worker = self.house.dial_slot(slot)
        worker.send(wire.pack_packet(Kind.READY, 0))
        self.house.turn(2)
        return worker

    def open(self, count: int) -> list[Client]:
        """So many more clients; one request of each has been answered, so that the worker has its arena."""
        made = [Client(self.house) for _ in range(count)]
        for client in made:
            client.ask(1 << 40)
        self.house.turn(2)
        for rid in self.rids():
            self.say(_respond(rid))
        self.house.turn(len(made) + 2)
        assert all(client.heard() == [1 << 40] for client in made)
        self.clients += made
        return made

    def messages(self) -> list[bytes]:
        """What lies there for the worker, without notes."""
        found = []
        while True:
            try:
                message, fds = recv_bytes(self.worker, 1, DONTWAIT)
            except BlockingIOError:
                return found
            close_all(fds)
            assert message is not None
            if len(message) != NOTE_BYTES:
                found.append(message)

    def routes(self) -> list[tuple[int, int]]:
        """Kind and id of all packets that lie there."""
        packets = [packet for message in self.messages() for packet in _unpack(message)]
        return [wire.read_route(packet) for packet in packets]

    def rids(self) -> list[int]:
        """The ids of the requests that lie there, and nothing else does."""
        routes = self.routes()
        assert all(kind == Kind.REQUEST for kind, _ in routes)
        return [rid for _, rid in routes]

    def take(self, client: Client, packet: bytes) -> None:
        """Have the router read a packet of a client's in the middle of a turn."""
        self.house.router._take(self.house.router.sessions[client.number], packet)

    def say(self, message: bytes) -> None:
        """Send as the worker."""
        self.worker.send(message, DONTWAIT)

    def close(self) -> None:
        """Hang up everywhere."""
        self.worker.close()
        for client in self.clients:
            client.link.close()


@pytest.fixture
def scene() -> Iterator[Scene]:
    """A router, turn by turn, and a worker that has nothing to do."""
    with House() as house:
        made = Scene(house)
        yield made
        made.close()


def _respond(rid: int) -> bytes:
    return wire.pack_packet(Kind.RESPONSE, rid, ROW, b"pong", tensors=1)


def _unpack(message: bytes) -> list[bytes]:
    return split_train(message) if is_train(message) else [message]


# --- requests ---------------------------------------------------------------------------------------------------------


def test_requests_that_come_in_one_turn_leave_in_one_message_in_order(scene: Scene) -> None:
    """As they came, each as it would have gone alone; one that comes alone goes alone."""
    clients = scene.open(5)
    asked = [client.ask(10 + index) for index, client in enumerate(clients)]
    scene.house.turn()
    (message,) = scene.messages()
    packets = split_train(message)
    assert [packet[wire.ROUTE_BYTES :] for packet in packets] == [packet[wire.ROUTE_BYTES :] for packet in asked]
    envelopes = [wire.read_envelope(packet) for packet in packets]
    assert [envelope.arena for envelope in envelopes] == [client.number for client in clients]
    assert all(after.id == before.id + 1 for before, after in pairwise(envelopes))
    clients[0].ask(20)
    scene.house.turn()
    (message,) = scene.messages()
    assert wire.read_route(message) == (Kind.REQUEST, envelopes[-1].id + 1)


def test_an_arena_comes_before_the_train_with_its_request(scene: Scene) -> None:
    """A session's first request and another's: the note with the descriptor is not behind them."""
    (client,) = scene.open(1)
    newcomer = Client(scene.house)
    scene.clients.append(newcomer)
    client.ask(1)
    newcomer.ask(1)
    scene.house.turn()
    note, fds = recv_bytes(scene.worker, 1, DONTWAIT)
    assert (note is not None and len(note), len(fds)) == (NOTE_BYTES, 1)
    close_all(fds)
    assert len(scene.rids()) == 2


def test_a_withdrawal_follows_its_request_that_still_waits_in_the_train(scene: Scene) -> None:
    """What was dispatched before leaves in front of the withdrawal; what comes after it, at the end of the turn."""
    one, other = scene.open(2)
    scene.take(one, one.request(1))
    scene.take(other, other.request(1))
    assert not scene.messages()
    scene.take(one, wire.pack_packet(Kind.CANCEL, 1))
    scene.take(other, other.request(2))
    train, cancel = scene.messages()
    (_, first), (_, second) = map(wire.read_route, split_train(train))
    assert wire.read_route(cancel) == (Kind.CANCEL, first)
    scene.house.turn()
    assert scene.routes() == [(Kind.REQUEST, second + 1)]


def test_a_train_without_room_is_kept_and_sent_later(scene: Scene) -> None:
    """In order, none twice; an answer to what is kept is none."""
    clients = scene.open(8)
    connection = scene.slot._connection
    assert connection is not None
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # as small as the kernel has it: a few trains
    for ident in range(10):
        for client in clients:
            client.ask(ident)
        scene.house.turn()
    kept = sorted(scene.slot._behind)
    assert 8 < len(kept) < 80
    assert len(kept) == 8 * len(scene.slot._unsent)
    scene.say(pack_train([_respond(rid) for rid in kept[-2:]]))
    scene.house.settle()
    assert (scene.slot.misbehaved, len(scene.slot.in_flight)) == (1, 80)
    rids: list[int] = []
    while len(rids) < 80:
        fresh = scene.rids()
        assert fresh
        rids += fresh
        scene.say(pack_train([_respond(rid) for rid in fresh]))
        scene.house.turn(2)
    assert rids == list(range(rids[0], rids[0] + 80))
    assert (len(scene.slot._unsent), len(scene.slot._behind), len(scene.slot.in_flight)) == (0, 0, 0)
    assert [client.heard() for client in clients] == [list(range(10))] * 8
    assert scene.slot.misbehaved == 1


def test_what_had_not_left_when_the_worker_hung_up_goes_to_the_next_one(scene: Scene) -> None:
    """Dispatched and lost in the same turn: each request is answered once."""
    clients = scene.open(3)
    for client in clients:
        client.ask(1)
    scene.worker.close()
    scene.house.turn()
    assert scene.slot.lost
    assert len(scene.slot.in_flight) == 3
    scene.house.apply([scene.tenant], [scene.house.make_slot("s1", "acme")])
    scene.worker = scene.work("s1")
    rids = scene.rids()
    assert len(rids) == 3
    scene.say(pack_train([_respond(rid) for rid in rids]))
    scene.house.turn()
    assert [client.heard() for client in clients] == [[1]] * 3


@both_lanes
def test_a_batch_leaves_in_one_message(plane: Any, lane: str) -> None:
    """On either lane, with what is left of it counted down; up to 64 requests of it."""
    worker, session = plane.add_pair("acme", lane)
    plane.set_models("acme", [plane.manifest(batch="max_rows = 100")])
    plane.change("acme", max_inflight=1, queue_max=200)
    session.lane.send(session.request(1, rows=1))
    busy = worker.next_request()
    for ident in range(2, 102):
        session.lane.send(session.request(ident, rows=1))
    plane.wait_until(lambda: plane.counts("acme")["queued"] == 100)
    worker.respond(busy.id)
    trains = [split_train(worker.lane.wire.recv()) for _ in range(2)]
    assert [len(train) for train in trains] == [MOST, 100 - MOST]
    envelopes = [wire.read_envelope(packet) for train in trains for packet in train]
    assert [envelope.left for envelope in envelopes] == list(range(99, -1, -1))
    for train in trains:
        worker.lane.send(pack_train([worker.response(wire.read_route(packet)[1]) for packet in train]))
    assert [session.answer() for _ in range(101)] == [(ident, Kind.RESPONSE, "") for ident in range(1, 102)]


# --- answers ----------------------------------------------------------------------------------------------------------


@both_lanes
def test_a_train_of_answers_reaches_each_client_once(plane: Any, lane: str) -> None:
    """In the order of the train, whichever session each is of; a train may have those of both lanes."""
    worker, session = plane.add_pair("acme", lane)
    plane.change("acme", max_inflight=100)
    for ident in range(1, 6):
        session.lane.send(session.request(ident))
    rids = [worker.next_request().id for _ in range(5)]
    other = plane.knock("acme")
    other.lane.send(other.request(1))
    worker.take_arena()
    rids.insert(2, wire.read_envelope(worker.fast.recv()).id)
    rids.reverse()
    worker.lane.send(pack_train([worker.response(rid) for rid in rids]))
    assert [session.answer() for _ in range(5)] == [(ident, Kind.RESPONSE, "") for ident in range(5, 0, -1)]
    assert other.answer() == (1, Kind.RESPONSE, "")
    assert plane.counts("acme")["in_flight"] == 0
    session.settle()  # and nothing in between
    other.settle()
    assert not [message for message in plane.heard if message["op"] == "misbehaved"]


LIES = {
    "nobody's": _respond(7),
    "answered": b"",  # stands for the first answer, once more
    "ready": wire.pack_packet(Kind.READY, 0),
    "request": wire.pack_packet(Kind.REQUEST, 7),
    "cancel": wire.pack_packet(Kind.CANCEL, 7),
    "garbage": b"\xff" * 60,
    "note": bytes(NOTE_BYTES),
    "short": b"x",
    "train": pack_train([_respond(7), _respond(8)]),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_in_a_train_ends_it_and_is_counted_once(scene: Scene, lie: str) -> None:
    """What came before it counts; what is behind it is dropped, and may be said again."""
    clients = scene.open(5)
    for client in clients:
        client.ask(1)
    scene.house.turn()
    first, *rest = map(_respond, scene.rids())
    scene.say(pack_train([first, LIES[lie] or first, *rest[:2], b"x", b"x"]))
    scene.house.turn()
    assert scene.slot.misbehaved == 1
    assert [client.heard() for client in clients] == [[1], [], [], [], []]
    scene.say(pack_train(rest))
    scene.house.settle()
    assert [client.heard() for client in clients] == [[], [1], [1], [1], [1]]
    assert (scene.slot.misbehaved, scene.slot.lost, len(scene.slot.in_flight)) == (1, False, 0)


@pytest.mark.parametrize("twist", ["trains", "cut", "longer", "more", "fewer", "one", "many", "none"])
def test_a_train_that_is_none_is_dropped_whole(scene: Scene, twist: str) -> None:
    """Trains in a train, lengths and counts that lie: nobody is answered, and the lie is counted once."""
    clients = scene.open(2)
    for client in clients:
        client.ask(1)
    scene.house.turn()
    answers = [_respond(rid) for rid in scene.rids()]
    good = pack_train(answers)
    mark = MAGIC.to_bytes(2, "little")
    twisted = {
        "trains": pack_train([good, good]),
        "cut": good[:-1],
        "longer": good + b"x",
        "more": mark + b"\x03" + good[3:],
        "fewer": mark + b"\x01" + good[3:],
        "one": mark + b"\x01\x00" + len(answers[0]).to_bytes(4, "little") + answers[0],
        "many": mark + b"\xff\xff" + bytes(1000),
        "none": mark,
    }
    scene.say(twisted[twist])
    scene.house.turn()
    assert scene.slot.misbehaved == 1
    assert [client.heard() for client in clients] == [[], []]
    scene.say(good)
    scene.house.settle()
    assert [client.heard() for client in clients] == [[1], [1]]
    assert scene.slot.misbehaved == 1


@both_lanes
def test_lies_in_trains_harm_nobody_on_either_lane(plane: Any, lane: str) -> None:
    """Each message that lies is one lie, and the real answers still arrive."""
    worker, session = plane.add_pair("acme", lane)
    for ident in (1, 2):
        session.lane.send(session.request(ident))
    first, second = (worker.response(worker.next_request().id) for _ in range(2))
    for message in (
        pack_train([_respond(7), first, second]),
        pack_train([pack_train([first, second])] * 2),
        pack_train([first, second])[:-1],
        pack_train([b"x"] * MOST),
    ):
        worker.lane.send(message)
    worker.lane.send(pack_train([second, first]))
    assert [session.answer()[0] for _ in range(2)] == [2, 1]
    while (message := plane.hear("misbehaved"))["count"] < 4:
        pass
    plane.stats("acme")
    assert not [message for message in plane.heard if message["op"] == "misbehaved"]


def test_an_answer_to_what_is_about_to_leave_is_none(scene: Scene) -> None:
    """A worker that guesses the next number misbehaves; the request is sent, and answered when it has been."""
    (client,) = scene.open(1)
    client.ask(1)
    scene.house.turn()
    (rid,) = scene.rids()
    client.ask(2)
    scene.say(pack_train([_respond(rid), _respond(rid + 1)]))
    scene.house.turn()
    assert (scene.slot.misbehaved, len(scene.slot.in_flight)) == (1, 1)
    assert scene.rids() == [rid + 1]
    scene.say(_respond(rid + 1))
    scene.house.settle()
    assert client.heard() == [1, 2]


# --- what it cost -----------------------------------------------------------------------------------------------------


def test_the_time_of_a_train_is_shared_out_over_its_answers(scene: Scene) -> None:
    """In equal parts, however late each of them was sent: all of it together, from the first one on, is charged."""
    early, *late = scene.open(3)
    tenant = scene.house.router.tenants["acme"]
    line = tenant.lines[1, 1]
    early.ask(1)
    scene.house.turn()
    (request,) = scene.slot.in_flight.values()
    sent_ns, before_ns, cost_ns = request.sent_ns, tenant.busy_ns, line.cost_ns
    _let_time_pass()
    for client in late:
        client.ask(1)
    scene.house.turn()
    scene.say(pack_train([_respond(rid) for rid in scene.rids()]))
    scene.house.turn()
    took_ns = scene.slot.free_ns - sent_ns
    assert tenant.busy_ns - before_ns == took_ns
    each_ns = took_ns // 3
    for measured_ns in (took_ns - 2 * each_ns, each_ns, each_ns):
        cost_ns += (measured_ns - cost_ns) // 8
    assert line.cost_ns == cost_ns


@pytest.mark.parametrize(("version", "count"), [(1, 1), (BATCHED, 3)])
def test_a_train_with_lies_in_it_costs_what_it_took(scene: Scene, version: int, count: int) -> None:
    """Who fills a train up with answers to nothing has not run for a part of the time only."""
    clients = scene.open(count)
    tenant = scene.house.router.tenants["acme"]
    before_ns = tenant.busy_ns
    for client in clients:
        client.ask(1, version)
    scene.house.turn()
    _let_time_pass()
    scene.say(pack_train([*map(_respond, scene.rids()), *[b"x"] * 60]))
    scene.house.turn()
    assert (scene.slot.misbehaved, scene.slot.batches) == (1, 0)
    assert [client.heard() for client in clients] == [[1]] * count
    assert tenant.busy_ns - before_ns >= MOMENT_NS


def test_a_request_that_a_train_leaves_out_is_charged_the_rest(scene: Scene) -> None:
    """A worker that answers later ones first, and together, gets none of its time for nothing, nor pays twice."""
    first, *others = scene.open(3)
    tenant = scene.house.router.tenants["acme"]
    before_ns = tenant.busy_ns
    first.ask(1)
    scene.house.turn()
    (held,) = scene.slot.in_flight.values()
    sent_ns = held.sent_ns
    for client in others:
        client.ask(1)
    scene.house.turn()
    rid, *rids = scene.rids()
    _let_time_pass()
    scene.say(pack_train([_respond(rid) for rid in rids]))
    scene.house.turn()
    assert tenant.busy_ns - before_ns == scene.slot.free_ns - sent_ns
    _let_time_pass()
    scene.say(_respond(rid))
    scene.house.turn()
    assert first.heard() == [1]
    assert tenant.busy_ns - before_ns == scene.slot.free_ns - sent_ns


def _let_time_pass() -> None:
    """A moment of the clock that the router looks at."""
    until_ns = time.monotonic_ns() + MOMENT_NS
    while time.monotonic_ns() < until_ns:
        pass
