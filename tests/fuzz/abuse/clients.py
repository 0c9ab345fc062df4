"""What clients without manners do, to a router and to the worker behind it."""

import contextlib
import os
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Final

import zmq

from bedsit.ipc import wire
from bedsit.ipc.door import PROTOCOL
from bedsit.ipc.errors import BedsitError
from bedsit.ipc.seqpacket import send_bytes
from bedsit.ipc.wire import Kind
from tests.fuzz.abuse.stage import DONTWAIT, Stage, send_all, take_answers
from tests.fuzz.draw import Nest, pack, tell_lies
from tests.fuzz.shapes import make_packet, make_rows
from tests_support.zmtp import GREETING, greet

_ARENA: Final = 1 << 20
_NEAR: Final = (0, 4, 64, 4096, _ARENA - 64, _ARENA - 4, _ARENA, 1 << 40, (1 << 63) - 1, (1 << 64) - 4)


def half_packets(stage: Stage) -> None:
    """Beginnings of packets, on a session and at the door."""
    session = stage.knock()
    if session is not None:
        whole = session.request(1)
        send_all(session, [whole[: stage.rng.randrange(1, len(whole))] for _ in range(20)])
        send_all(session, [whole])
        take_answers(session, {1})
    stage.dial(stage.folder / "door.sock").send(b"\x84\xa2op\xa4op")


def huge_packets(stage: Stage) -> None:
    """At the limit and over it, at the door too."""
    session = stage.knock()
    if session is not None:
        whole = session.request(1)
        for size in (wire.MAX_PACKET, wire.MAX_PACKET + 1, 100_000, 150_000):
            with contextlib.suppress(OSError):
                session.door.socket.send(whole.ljust(size, b"x"), DONTWAIT)
    door = stage.dial(stage.folder / "door.sock")
    with contextlib.suppress(OSError):
        door.send(bytes(150_000), DONTWAIT)


def tiny_packets(stage: Stage) -> None:
    """Very many that are nothing, and no answer is read."""
    session = stage.knock()
    if session is not None:
        with contextlib.suppress(OSError):  # it hangs up
            for _ in range(1000):
                session.lane.send(b"x")


def replayed_ids(stage: Stage) -> None:
    """Ids that were used, that are in use, and that are odd: a reused one ends the session, and nothing else."""
    session = stage.knock()
    if session is not None:
        for ident in (7, 7, 0, (1 << 64) - 1, 7):
            send_all(session, [session.request(ident)])
            take_answers(session, {ident})
        send_all(session, [session.request(9)] * 3)


def cancel_everything(stage: Stage) -> None:
    """What is in flight, what is not, and what never was."""
    session = stage.knock()
    if session is not None:
        idents = range(1, 20)
        if send_all(session, [session.request(ident) for ident in idents]):
            for ident in (*idents, *idents, *(stage.rng.getrandbits(64) for _ in range(50))):
                send_all(session, [wire.pack_packet(Kind.CANCEL, ident)])
            take_answers(session, set(idents))


def foreign_arenas(stage: Stage) -> None:
    """Numbers of arenas that are somebody else's: refused, each."""
    session = stage.knock()
    if session is not None:
        others = [number for number in range(1, 25) if number != session.arena.number]
        if send_all(session, [session.request(number, arena=number) for number in others]):
            take_answers(session, set(others))


def lying_rows(stage: Stage) -> None:
    """Rows and regions that overflow, overlap and point anywhere: each gets an answer."""
    session = stage.knock(stage.rng.choice(("fast", "fast", "zmq")))
    if session is None:
        return
    owed = set()
    for ident in range(1, 30):
        draw = stage.draw()
        regions = draw.pick((0, 1, 1, 2))
        header = make_rows(draw, 1, _NEAR) + b"".join(
            struct.pack("<QQ", draw.pick(_NEAR), draw.pick((4, 64, _ARENA, 1 << 40, (1 << 64) - 1)))
            for _ in range(regions)
        )
        packet = make_packet(draw, header, bytes(4), ident=ident, arena=session.arena.number, regions=regions)
        try:
            _, _, kind, _, asked, *_ = wire.read_fields(packet)
        except BedsitError:
            continue
        if kind != Kind.CANCEL and asked not in owed:
            if not send_all(session, [packet]):
                return
            owed.add(asked)
    take_answers(session, owed)


def aliased_rooms(stage: Stage) -> None:
    """Rooms over the inputs and over each other: the tenant's own memory, and its own answer."""
    session = stage.knock()
    if session is None:
        return
    owed = set()
    for ident in range(1, 10):
        offset, room = stage.rng.choice((0, 64, 4096)), stage.rng.choice((0, 64, 4096, 4160))
        rows = wire.encode_tensor("float32", (1024,), wire.Place.ARENA, offset) + wire.encode_region(room, 4096)
        packet = wire.pack_packet(
            Kind.REQUEST, ident, rows, tensors=1, regions=1, model=1, model_version=1, arena=session.arena.number
        )
        if not send_all(session, [packet]):
            return
        owed.add(ident)
    take_answers(session, owed)


def descriptors(stage: Stage) -> None:
    """Files handed to the door and to a session, which keeps none."""
    session = stage.knock()
    links = [stage.dial(stage.folder / "door.sock"), *([session.door.socket] if session is not None else [])]
    with open(os.devnull, "rb") as file:
        for link in links:
            for _ in range(20):
                with contextlib.suppress(OSError):
                    send_bytes(link, bytes(64), [file.fileno()] * 100, DONTWAIT)


def slow_reader(stage: Stage) -> None:
    """Many requests, and an answer is read now and then."""
    session = stage.knock(stage.rng.choice(("fast", "zmq")))
    if session is not None:
        owed = set()
        for ident in range(1, 100):
            if not send_all(session, [session.request(ident) + bytes(2000)]):
                break
            owed.add(ident)
            if ident % 10 == 0:
                take_answers(session, {*owed} if ident % 50 == 0 else set())
                owed = set() if ident % 50 == 0 else owed
        take_answers(session, owed)


def never_reader(stage: Stage) -> None:
    """Requests and questions until the router takes no more, or hangs up."""
    session = stage.knock(stage.rng.choice(("fast", "zmq")))
    if session is not None:
        for ident in range(1, 1500):
            one = session.request(ident) if ident % 3 else wire.pack_map(Kind.ASK, ident, {"op": "models"})
            if not send_all(session, [one]):
                return


def storm(stage: Stage) -> None:
    """Connections that come and go, with and without a word, and some sessions among them."""
    words = pack({"op": "open", "v": PROTOCOL, "tenant": "acme", "key": "wrong", "lane": "fast"})
    for turn in range(150):
        link = stage.dial(stage.folder / "door.sock")
        if turn % 3:
            with contextlib.suppress(OSError):
                link.send(words[: stage.rng.choice((1, len(words)))], DONTWAIT)
        link.close()
    for _ in range(10):
        session = stage.knock(stage.rng.choice(("fast", "zmq")))
        if session is not None:
            send_all(session, [session.request(1)])
            session.close()


def odd_questions(stage: Stage) -> None:
    """First packets that lie about their types and their depth."""
    good = {"op": "open", "v": PROTOCOL, "tenant": "acme", "key": stage._key, "lane": "fast"}
    bodies = [pack(good | {"lane": Nest(1000, 1)}), pack(good | {"tenant": Nest(1000, 1)}), pack(good | {"key": b"x"})]
    bodies += [pack(stage.draw().twist(good)) for _ in range(20)]
    bodies += [tell_lies(stage.draw(40))[: 1 << 16] for _ in range(10)]
    for body in bodies:
        link = stage.dial(stage.folder / "door.sock")
        with contextlib.suppress(OSError):
            link.send(body or b"\xc1")
            link.recv(1 << 16)
        link.close()


def odd_asks(stage: Stage) -> None:
    """Questions in a session: twisted, deep, lying."""
    session = stage.knock()
    if session is not None:
        for ident in range(1, 20):
            draw = stage.draw()
            good = {"op": "describe", "model": "gate", "version": 0}
            question = pack(draw.twist(good)) if ident % 3 else tell_lies(draw)
            if not send_all(session, [make_packet(stage.draw(0), question[:50_000], b"", ident=ident, kind=Kind.ASK)]):
                return
            session.lane.recv()


def partial_greetings(stage: Stage) -> None:
    """Connections to the ZeroMQ lane that begin to greet, or greet and talk nonsense."""
    session = stage.knock("zmq")
    if session is None:
        return
    path = session.opened.endpoint
    for size in (0, 1, 10, 63, 64):
        stage.dial(stage.folder / "lanes" / path.rpartition("/")[2], socket.SOCK_STREAM).send(GREETING[:size])
    peer = stage.keep(greet(path))
    with contextlib.suppress(OSError):
        peer.send(stage.rng.randbytes(3000), DONTWAIT)


def many_parts(stage: Stage) -> None:
    """Messages of very many parts, and a flood of those with one too many."""
    session = stage.knock("zmq")
    if session is None:
        return
    peer = stage.keep(greet(session.opened.endpoint))
    peer.settimeout(0.2)
    with contextlib.suppress(OSError):
        peer.sendall(b"\x01\x00" * 15_000 + b"\x00\x00")
        peer.sendall(b"\x01\x00\x01\x00\x00\x00" * 3_000)
    if isinstance(session.lane.socket, zmq.Socket):
        for parts in (1, 2, 3, 50):
            session.lane.socket.send_multipart([b"x"] * parts)
    send_all(session, [session.request(5)])
    take_answers(session, {5})


STEPS: Final[Sequence[Callable[[Stage], None]]] = (
    *(half_packets, huge_packets, tiny_packets, replayed_ids, cancel_everything, foreign_arenas, lying_rows),
    *(aliased_rooms, descriptors, slow_reader, never_reader, storm, odd_questions, odd_asks, partial_greetings),
    many_parts,
)
