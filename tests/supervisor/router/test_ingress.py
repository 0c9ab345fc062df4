"""How requests come in: a little of each tenant at a time, and nothing of one that has its fill."""

import os
import socket
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from bedsit import Client
from bedsit.ipc.wire import Kind
from bedsit.supervisor.router.arenas import Arena
from bedsit.supervisor.router.ingress import BUDGET, Ingress
from bedsit.supervisor.router.loop import Loop
from bedsit.supervisor.router.sessions import Session

ONE = {"x": np.zeros(1, np.float32)}
A_DAY_S = 86_400.0


class Crowd:
    """Sessions of one tenant at an ingress, and what came of them."""

    def __init__(self, loop: Loop, sessions: int) -> None:
        self.taken: list[tuple[int, bytes]] = []
        self.lost: list[int] = []
        self.turns = 0
        self.ingress = Ingress(loop, self._take, self._lose, self._count)
        self.clients: list[socket.socket] = []
        self.sessions: list[Session] = []
        for number in range(sessions):
            client, door = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self.clients.append(client)
            arena = Arena(os.open("/dev/null", os.O_RDONLY), number, 4096)
            self.sessions.append(Session(None, door, arena, None))
            self.ingress.add(self.sessions[-1])

    def send(self, packet: bytes, times: int = 1) -> None:
        """Each client sends it so often."""
        for client in self.clients:
            for _ in range(times):
                client.send(packet)

    def end(self, number: int) -> None:
        """End a session, as the router does."""
        self.ingress.remove(self.sessions[number])
        self.sessions[number].close()

    def close(self) -> None:
        self.ingress.close()
        for session, client in zip(self.sessions, self.clients, strict=True):
            client.close()
            if not session.closed:
                session.close()

    def _take(self, session: Session, packet: bytes) -> None:
        self.taken.append((session.arena_number, packet))

    def _lose(self, session: Session) -> None:
        self.lost.append(session.arena_number)
        self.end(session.arena_number)

    def _count(self) -> None:
        self.turns += 1


class Turns:
    """The router's loop, a turn at a time."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.crowds: list[Crowd] = []

    def add(self, sessions: int) -> Crowd:
        self.crowds.append(Crowd(self.loop, sessions))
        return self.crowds[-1]

    def pass_(self, count: int = 1) -> None:
        for _ in range(count):
            self.loop._stopped = False
            self.loop.again(self.loop.stop)
            self.loop.run()


@pytest.fixture
def turns() -> Iterator[Turns]:
    """A loop of the test's own."""
    made = Turns()
    yield made
    for crowd in made.crowds:
        crowd.close()
    made.loop._epoll.close()


def test_a_turn_takes_a_budget_of_a_crowd_and_all_of_somebody_alone(turns: Turns) -> None:
    """However many connections a tenant floods, in one turn so many packets are read; others are read in that turn."""
    flood, victim = turns.add(40), turns.add(1)
    flood.send(b"x", 20)
    victim.send(b"y", 5)
    for turn in range(1, 6):
        turns.pass_()
        assert len(flood.taken) == turn * BUDGET
        assert len(victim.taken) == turn
    assert (flood.turns, victim.turns) == (5, 5)


def test_the_connections_of_a_crowd_take_turns(turns: Turns) -> None:
    """In as many turns as it takes to read each once, each is read once."""
    flood = turns.add(3 * BUDGET)
    flood.send(b"x", 3)
    turns.pass_(3)
    assert Counter(number for number, _ in flood.taken) == dict.fromkeys(range(3 * BUDGET), 1)


def test_a_tenant_at_rest_is_not_read_and_another_one_is(turns: Turns) -> None:
    """What it sent, also on a connection that comes meanwhile, and who hung up: all that is found at the end of it."""
    resting, other = turns.add(3), turns.add(1)
    resting.ingress.rest(A_DAY_S)
    resting.ingress.rest(A_DAY_S)
    resting.send(b"x")
    other.send(b"y", 3)
    resting.clients[1].close()
    turns.pass_(3)
    assert (resting.taken, resting.lost, len(other.taken)) == ([], [], 3)
    resting.ingress.resume()
    turns.pass_(2)
    assert sorted(resting.taken) == [(0, b"x"), (1, b"x"), (2, b"x")]
    assert resting.lost == [1]
    resting.ingress.resume()
    turns.pass_(1)


def test_a_rest_ends_by_itself(turns: Turns) -> None:
    """When its time is over the tenant is read, and whoever rested with it is told."""
    crowd = turns.add(1)
    awake: list[bool] = []
    crowd.ingress.awake = lambda: awake.append(True)
    crowd.send(b"x")
    crowd.ingress.rest(0.0)
    turns.pass_(2)
    assert (crowd.taken, awake) == ([(0, b"x")], [True])


def test_a_session_may_end_before_its_packet_of_that_turn_is_read(turns: Turns) -> None:
    """A packet that ends another session leaves that one's unread, whatever was found to be there."""
    crowd = turns.add(2)
    crowd.send(b"x")

    def take(session: Session, packet: bytes) -> None:
        crowd.taken.append((session.arena_number, packet))
        crowd.end(1 - session.arena_number)

    crowd.ingress._take = take
    turns.pass_(3)
    assert len(crowd.taken) == 1
    assert crowd.lost == []


def _flood(session: Any, first: int = 1) -> int:
    """Send requests as fast as one can until the kernel takes no more; how many that were."""
    count = 0
    while session.lane.try_send(session.request(first + count)):
        count += 1
        assert count < 100_000, "it is all taken"
    return count


def test_a_flood_on_a_full_queue_stays_in_the_kernel(plane: Any) -> None:
    """Its sender can send no more, another tenant is served, and each refusal comes, in order; then there is room."""
    plane.add_slot("beta")
    plane.change("acme", queue_max=4, max_inflight=1)
    worker = plane.add_hostile("acme")
    session = plane.knock("acme")
    with Client("beta", run_dir=str(plane.run_dir)) as client:
        sent = _flood(session)
        for _ in range(5):
            assert client.infer("gate", ONE)["y"][0] == 1.0
        assert [session.answer() for _ in range(sent - 5)] == [
            (ident, Kind.ERROR, "queue.full") for ident in range(6, sent + 1)
        ]
    assert plane.counts("acme") == {
        "requests": sent - 5,
        "errors": sent - 5,
        "queued": 4,
        "in_flight": 1,
        "sessions": 1,
    }
    assert (plane.stats("acme")["refused"], plane.stats("beta")["errors"]) == (sent - 5, 0)
    worker.take_arena()
    worker.respond(worker.next_request().id)
    assert session.answer() == (1, Kind.RESPONSE, "")
    session.lane.send(session.request(sent + 1))
    plane.wait_until(lambda: plane.counts("acme")["queued"] == 4)
    assert not session.lane.poll(0)


def test_a_rate_that_is_flooded_is_refused_a_little_at_a_time(plane: Any) -> None:
    """Also without a queue: what is over the rate waits in the kernel for its refusal, and nobody else notices."""
    plane.add_slot("beta")
    plane.change("acme", rate_per_s=1e-6, burst=1)
    plane.add_hostile("acme")
    session = plane.knock("acme")
    with Client("beta", run_dir=str(plane.run_dir)) as client:
        sent = _flood(session)
        for _ in range(5):
            assert client.infer("gate", ONE)["y"][0] == 1.0
        refused = {(ident, Kind.ERROR, "rate.limited") for ident in range(2, sent + 1)}
        assert {session.answer() for _ in range(sent - 1)} == refused
    assert plane.stats("beta")["errors"] == 0


@pytest.mark.parametrize("lane", ["fast", "zmq"])
def test_many_sessions_that_flood_cost_another_tenant_nothing(plane: Any, lane: Any) -> None:
    """Sixteen sessions send all they can, again and again; each call of the neighbour's is answered right."""
    plane.add_slot("beta")
    plane.change("acme", queue_max=4, max_inflight=1)
    plane.add_hostile("acme")
    sessions = [plane.knock("acme", lane=lane) for _ in range(16)]
    sent, answers = [0] * 16, [0] * 16
    with Client("beta", run_dir=str(plane.run_dir), lane=lane) as client:
        for _ in range(20):
            for number, session in enumerate(sessions):
                # No more than it can be told of before it looks: else it would lose its session.
                while sent[number] - answers[number] < 150 and session.lane.try_send(session.request(sent[number] + 1)):
                    sent[number] += 1
                while session.lane.poll(0):
                    assert session.answer()[1:] == (Kind.ERROR, "queue.full")
                    answers[number] += 1
            assert client.infer("gate", ONE)["y"][0] == 1.0
    assert (plane.stats("beta")["errors"], plane.stats("beta")["refused"]) == (0, 0)
    assert plane.stats("beta")["requests"] == 20
    assert all(answers)
    assert plane.counts("acme")["sessions"] == 16


@pytest.mark.parametrize("lane", ["fast", "zmq"])
def test_who_hangs_up_while_its_tenant_is_not_read_is_noticed(plane: Any, lane: Any) -> None:
    """What it held in the queue is free after that, and goes to the session whose flood had stopped the reading."""
    plane.change("acme", queue_max=4, max_inflight=1)
    plane.add_hostile("acme")
    holder, flooder = plane.knock("acme", lane=lane), plane.knock("acme", lane=lane)
    for ident in range(1, 6):
        holder.lane.send(holder.request(ident))
    plane.wait_until(lambda: plane.counts("acme")["queued"] == 4)
    for ident in range(1, 101):
        flooder.lane.send(flooder.request(ident))
    holder.close()
    plane.wait_until(lambda: plane.counts("acme")["sessions"] == 1)
    more = 101
    while plane.counts("acme")["queued"] < 4:
        flooder.lane.send(flooder.request(more))
        more += 1
    assert plane.counts("acme")["in_flight"] == 1  # of the holder's; its worker has not answered
    assert flooder.answer()[1:] == (Kind.ERROR, "queue.full")
