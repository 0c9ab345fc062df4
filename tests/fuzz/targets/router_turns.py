"""A whole router, turn by turn: clients, workers and the daemon do what the input says, each with real sockets.

Another tenant is innocent. Its calls are answered right throughout, and in the end nothing of the hostile one is left.
"""

import contextlib
import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from bedsit.ipc import wire
from bedsit.ipc.door import PROTOCOL
from bedsit.ipc.seqpacket import close_all, recv_bytes, recv_packet, send_packet
from bedsit.ipc.slot import NOTE_BYTES, Note, Word, decode_note, encode_note
from bedsit.ipc.snapshot import ModelView, SlotView, VersionView
from bedsit.ipc.wire import Kind
from tests.fuzz.draw import Draw
from tests.fuzz.house import ARENA_BYTES, BATCHED, DONTWAIT, PLAIN, House, make_tenant
from tests.fuzz.shapes import make_packet

_STEPS: Final = 64
_RESTS: Final = 400
_ROW: Final = wire.encode_tensor("float32", (1,), wire.Place.INLINE, 0)
_VERSIONS: Final = [VersionView(1, PLAIN), VersionView(2, BATCHED)]


class Session:
    """A client's end, and what it has asked and not been told."""

    def __init__(self, link: socket.socket, number: int) -> None:
        self.link = link
        self.number = number
        self.owed: Counter[int] = Counter()
        self.over = False

    def send(self, packet: bytes) -> bool:
        """Hand it to the kernel, if there is somebody."""
        try:
            self.link.send(packet, DONTWAIT)
        except OSError:
            return False
        with contextlib.suppress(Exception):
            fields = wire.read_fields(packet)
            self.owed[fields[4]] += fields[2] != Kind.CANCEL
        return True

    def hear(self) -> list[bytes]:
        """What has come. Nobody is told twice, nor what he has not asked."""
        heard = []
        with contextlib.suppress(OSError):
            while packet := self.link.recv(1 << 17, DONTWAIT):
                kind, ident = wire.read_route(packet)
                assert kind in (Kind.RESPONSE, Kind.ERROR, Kind.TOLD)
                self.owed[ident] -= 1
                assert ident == 0 or self.owed[ident] >= 0, f"told {ident} once too often"
                heard.append(packet)
            self.over = True
        return heard


class Stage:
    """The house with both tenants in it."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.tenants = [make_tenant("acme", 1, max_inflight=16), make_tenant("beta", 2)]
        self.slots = {"s0": house.make_slot("s0", "acme"), "s1": house.make_slot("s1", "beta")}
        self.parallel = 0
        self.numbers = 2
        self.sessions: list[Session] = []
        self.workers: dict[str, socket.socket] = {}
        self.seen: deque[int] = deque(maxlen=64)  # ids that a worker has read
        self.publish()
        for slot in self.slots:
            self.work(slot)
        self.innocent = self.open("beta")

    def publish(self) -> None:
        self.house.apply(self.tenants, list(self.slots.values()), self.parallel)
        self.house.turn()

    def work(self, slot: str) -> None:
        """Be the worker of a slot."""
        with contextlib.suppress(OSError):
            link = self.workers[slot] = self.house.dial_slot(slot)
            link.send(wire.pack_packet(Kind.READY, 0), DONTWAIT)
        self.house.turn(2)
        served = self.house.router.slots.get(slot)
        if slot != "s1" and served is not None and served._connection is not None:
            # As small as the kernel has it: a few packets fill it, and the rest has to wait for the worker.
            served._connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)

    def open(self, tenant: str) -> Session | None:
        """A new session."""
        link = self.house.knock()
        send_packet(link, {"op": "open", "v": PROTOCOL, "tenant": tenant, "key": None, "lane": "fast"})
        self.house.turn(2)
        answer, fds = recv_packet(link, 1)
        close_all(fds)
        if answer is None or "error" in answer:
            link.close()
            return None
        return Session(link, answer["arena"])

    def read_worker(self, slot: str, count: int) -> list[tuple[int, int]]:
        """Take packets of a worker: kind and id of each."""
        read: list[tuple[int, int]] = []
        link = self.workers.get(slot)
        while link is not None and len(read) < count:
            try:
                packet, fds = recv_bytes(link, 1, DONTWAIT)
            except OSError:
                break
            close_all(fds)
            if packet is None:
                break
            if len(packet) == NOTE_BYTES:
                note = decode_note(packet)
                assert (note.word == Word.GIVE) == bool(fds)
                read.append((0, note.number))
            else:
                read.append(wire.read_route(packet))
        return read

    def ask_innocently(self) -> None:
        """The other tenant asks for one more."""
        session = self.innocent
        assert session is not None
        session.send(
            wire.pack_packet(
                Kind.REQUEST, 9, _ROW, bytes(4), tensors=1, model=1, model_version=1, arena=session.number, rows=1
            )
        )

    def call_innocently(self) -> None:
        """The other tenant asks for one more, and gets it."""
        session = self.innocent
        assert session is not None
        self.ask_innocently()
        for _ in range(40):
            self.house.turn()
            for kind, ident in self.read_worker("s1", 10):
                if kind == Kind.REQUEST:
                    self.workers["s1"].send(_answer(ident, b"beta"), DONTWAIT)
            heard = session.hear()
            if heard:
                assert [packet[-4:] for packet in heard] == [b"beta"]
                return
            if self.parallel:
                self._end_leases()
        raise AssertionError("the innocent one waits")

    def _end_leases(self) -> None:
        """There is a gate: who hangs loses its turn, as if the time of its lease had passed."""
        gate = self.house.router._dispatch._gates.get("")
        assert gate is not None
        for batch in gate._running:
            batch.pressed_ns = 1
        self.house.pass_time(0.3)

    def leave(self) -> None:
        """The hostile tenant ends, as it may be ended: then nothing of it is left."""
        house = self.house
        for session in self.sessions:
            session.hear()
            session.link.close()
        for slot in [slot for slot in self.slots if slot != "s1"]:
            del self.slots[slot]
            if slot in self.workers:
                self.workers.pop(slot).close()
        self.tenants = [make_tenant("acme", self.numbers), self.tenants[-1]]
        self.publish()
        acme = house.router.tenants["acme"]
        for _ in range(_RESTS):  # a tenant that was refused rests after each packet of those that lie there
            house.settle()
            if not acme.sessions:
                break
        counted = (acme.queued, acme.queued_bytes, acme.in_flight, acme.sessions, len(acme.waiting), len(acme.slots))
        assert counted == (0, 0, 0, 0, 0, 0), counted
        assert all((line.queued, line.in_flight, line.queued_bytes) == (0, 0, 0) for line in acme.lines.values())
        assert len(house.router.sessions) == 1
        assert set(house.router.slots) == {"s1"}
        assert not house.door._waiting

    def close(self) -> None:
        for part in (*self.sessions, self.innocent):
            if part is not None:
                part.link.close()
        for link in self.workers.values():
            link.close()


def _answer(ident: int, body: bytes, kind: int = Kind.RESPONSE) -> bytes:
    return wire.pack_packet(kind, ident, _ROW, body, tensors=1)


# --- what an input can do ---------------------------------------------------------------------------------------------


def _open(stage: Stage, draw: Draw) -> None:
    if len(stage.sessions) < 10 and (session := stage.open("acme")) is not None:
        stage.sessions.append(session)


def _session(stage: Stage, draw: Draw) -> Session | None:
    return draw.pick(stage.sessions) if stage.sessions else None


def _send(stage: Stage, draw: Draw) -> None:
    """A few requests that are nearly right."""
    session = _session(stage, draw)
    if session is None:
        return
    body = bytes(draw.pick((4, 4, 4, 8000, 60000)))
    for _ in range(draw.pick((1, 1, 1, 2, 8, 40))):
        ident = draw.below(12)
        flags = draw.below(8)
        packet = wire.pack_packet(
            Kind.REQUEST,
            ident,
            _ROW,
            body,
            tensors=1,
            model=1,
            model_version=1 + (flags & 1),
            flags=flags >> 1 & 1,
            arena=session.number,
            rows=draw.pick((0, 1, 2, 5, (1 << 32) - 1)),
            deadline_ns=draw.pick((0, 0, 0, 1, (1 << 64) - 1)),
            priority=draw.below(5),
        )
        session.send(packet)


def _send_lies(stage: Stage, draw: Draw) -> None:
    session = _session(stage, draw)
    if session is not None:
        kind = draw.pick((Kind.REQUEST, Kind.ASK, Kind.CANCEL, Kind.RESPONSE, Kind.READY))
        arena = draw.pick((session.number, 1, 2, 3, 99))
        packet = make_packet(draw, draw.piece(), draw.piece(), ident=draw.below(12), kind=kind, arena=arena)
        session.send(packet)


def _send_raw(stage: Stage, draw: Draw) -> None:
    session = _session(stage, draw)
    if session is not None:
        session.send(draw.piece() * draw.pick((1, 1, 200, 600)) or b"x")


def _cancel(stage: Stage, draw: Draw) -> None:
    session = _session(stage, draw)
    if session is not None:
        for ident in range(12):
            session.send(wire.pack_packet(Kind.CANCEL, ident))


def _ask(stage: Stage, draw: Draw) -> None:
    session = _session(stage, draw)
    if session is not None:
        question = draw.twist({"op": "describe", "model": "gate", "version": 1})
        with contextlib.suppress(Exception):
            session.send(wire.pack_map(Kind.ASK, draw.below(12), question))


def _hear(stage: Stage, draw: Draw) -> None:
    session = _session(stage, draw)
    if session is not None:
        session.hear()


def _hang_up(stage: Stage, draw: Draw) -> None:
    session = _session(stage, draw)
    if session is not None:
        session.link.close()
        stage.sessions.remove(session)


def _read(stage: Stage, draw: Draw) -> None:
    """The worker reads, and may answer what it reads at once."""
    at_once = draw.flag()
    for kind, ident in stage.read_worker(draw.pick(("s0", "s2")), draw.pick((1, 2, 5, 100))):
        if kind == Kind.REQUEST:
            stage.seen.append(ident)
            if at_once:
                _say(stage, draw, _answer(ident, b"acme"))
        elif kind == 0 and draw.flag():
            _say(stage, draw, encode_note(Note(Word.MAPPED, ident)))


def _say(stage: Stage, draw: Draw, packet: bytes) -> None:
    link = stage.workers.get("s0") or stage.workers.get("s2")
    if link is not None:
        with contextlib.suppress(OSError):
            link.send(packet, DONTWAIT)


def _answer_something(stage: Stage, draw: Draw) -> None:
    """What it has read, once more what it has answered, or a guess."""
    for _ in range(draw.pick((1, 1, 2, 10))):
        ident = draw.pick(list(stage.seen)) if stage.seen and draw.byte() % 4 else draw.number() % 200
        kind = draw.pick((Kind.RESPONSE, Kind.RESPONSE, Kind.ERROR, Kind.REQUEST, Kind.TOLD, Kind.READY))
        _say(stage, draw, _answer(ident, b"acme" * draw.pick((1, 1, 4000)), kind))


def _say_lies(stage: Stage, draw: Draw) -> None:
    word = draw.pick((Word.MAPPED, Word.GIVE, Word.FORGET, Word.MEET))
    _say(stage, draw, draw.piece() or encode_note(Note(word, draw.number(32), draw.number())))


def _end_worker(stage: Stage, draw: Draw) -> None:
    """It hangs up; the daemon may confirm it; another slot may come."""
    old = "s0" if "s0" in stage.slots else "s2"
    link = stage.workers.pop(old, None)
    if link is not None:
        link.close()
        stage.house.turn()
    if draw.flag():
        stage.slots.pop(old, None)
        stage.publish()
        if draw.flag():
            new = "s2" if old == "s0" else "s0"
            stage.slots[new] = stage.house.make_slot(new, "acme")
            stage.publish()
            stage.work(new)
    elif draw.flag():
        stage.work(old)  # it may not


def _change(stage: Stage, draw: Draw) -> None:
    """The daemon says that something is different."""
    kept = draw.pick((_VERSIONS, _VERSIONS[:1], _VERSIONS[1:], []))
    default = draw.pick((1, 2))
    model = ModelView(
        "gate",
        draw.pick((1, 1, 1, 2)),
        default,
        idempotent=draw.flag(),
        versions=kept,
        rate_per_s=draw.pick((0.0, 0.0, 1e-3, 1e6)),
        concurrency_max=draw.pick((0, 0, 1)),
        queue_max=draw.pick((0, 0, 1)),
        priority=draw.below(3),
    )
    models = [model] if any(row.version == default for row in kept) else []
    if draw.byte() % 16 == 15:
        stage.numbers += 1
    stage.parallel = draw.pick((0, 0, 1, 2))
    stage.tenants[0] = make_tenant(
        "acme",
        stage.numbers if stage.numbers > 2 else 1,
        state=draw.pick(("running", "running", "stopped")),
        models=models,
        queue_max=draw.pick((8, 1, 0)),
        max_inflight=draw.pick((16, 2, 1, 64)),
        sessions_max=draw.pick((8, 1)),
        concurrency_max=draw.pick((0, 0, 1)),
        rate_per_s=draw.pick((0.0, 0.0, 1e-3)),
        queue_bytes_max=draw.pick((1 << 20, 1 << 16, 0)),
        weight=draw.pick((100, 1, 10_000)),
        service_class=draw.pick(("interactive", "realtime", "batch")),
        min_share=draw.pick((0.0, 0.5)),
        arena_bytes=ARENA_BYTES,
    )
    for name, view in list(stage.slots.items()):
        if view.tenant == "acme":
            state = draw.pick(("serving", "serving", "draining", "loading"))
            stage.slots[name] = SlotView(name, "acme", state, os.getuid(), os.getgid(), view.models)
    stage.publish()


def _wait(stage: Stage, draw: Draw) -> None:
    stage.house.pass_time(draw.pick((0.0, 0.01, 0.1, 0.3, 6.0)))


def _turn(stage: Stage, draw: Draw) -> None:
    stage.house.turn(1 + draw.below(4))


def _call(stage: Stage, draw: Draw) -> None:
    stage.call_innocently()


_ACTS: Final[Sequence[Callable[[Stage, Draw], None]]] = (
    *(_open, _send, _send, _send_lies, _send_raw, _cancel, _ask, _hear, _hang_up, _read, _read, _answer_something),
    *(_say_lies, _end_worker, _change, _wait, _turn, _turn, _call),
)


def seeds() -> Iterator[bytes]:
    """Honest traffic, then each act in the middle of it."""
    opened = bytes([0, 1, 0, 0, 0, 1, 0, 1, 0, 3, 16, 0, 9, 1, 0, 3, 7, 0])
    yield opened
    for act in range(len(_ACTS)):
        yield opened + bytes([1, 0, 0, 4, 2, 0, 1, 0, 3, 16, 3, act, 1, 1, 1, 2, 1, 3, 1, 4, 1, 1, 1, 2, 18])
    # To the brim, so that another session's arena waits when the worker hangs up, or answers what it has not read.
    for count in range(1, 12):
        full = [0, 0, *(byte for ident in range(count) for byte in (1, 0, 0, 0, ident, 0, 1, 0, 0, 16, 3))]
        yield bytes([*full, 1, 1, 0, 0, 0, 0, 1, 0, 0, 16, 3, 13, 0, 0, 16, 3])
        yield bytes([*full, *(11, 3, *(byte for rid in range(10) for byte in (rid + 1, 0, 0))), 16, 3, *full[2:]])


def TestOneInput(data: bytes) -> None:  # noqa: N802 - the name that fuzzers look for
    """The innocent tenant is served at any time, everybody is told once, and in the end everything is given back."""
    draw = Draw(data)
    before = os.listdir("/proc/self/fd")
    with House() as house:
        stage = Stage(house)
        try:
            for _ in range(_STEPS):
                if not draw.left:
                    break
                draw.pick(_ACTS)(stage, draw)
                for slot in house.router.slots.values():
                    held = sum(1 for _, _, rid in slot._unsent if rid)
                    assert held <= len(slot.in_flight), "what waits for a worker piles up"
            house.settle()
            stage.leave()
            stage.call_innocently()
        finally:
            stage.close()
    assert len(os.listdir("/proc/self/fd")) == len(before)
