"""What workers without manners do, with clients of their own tenant who help them."""

import contextlib
import socket
from collections.abc import Callable, Sequence
from typing import Final

from bedsit.ipc import wire
from bedsit.ipc.slot import Note, Word, encode_note
from bedsit.ipc.wire import Kind
from tests.fuzz.abuse.stage import Stage, read_ids, say, send_all, take_answers
from tests.fuzz.house import BATCHED
from tests.fuzz.shapes import make_packet, make_rows
from tests.supervisor.router.conftest import HostileWorker, RawSession
from tests_support.zmtp import GREETING, greet

_ROW: Final = wire.encode_tensor("float32", (1,), wire.Place.INLINE, 0)


def _respond(*idents: int, kind: int = Kind.RESPONSE) -> list[bytes]:
    return [wire.pack_packet(kind, ident, _ROW, b"four", tensors=1) for ident in idents]


def _begin(stage: Stage, count: int, size: int = 4) -> tuple[HostileWorker, RawSession, set[int]] | None:
    """A worker, and a session that has sent so many requests."""
    worker, session = stage.work(), stage.knock()
    if session is None:
        return None
    idents = set(range(1, count + 1))
    send_all(session, [session.request(ident) + bytes(size) for ident in idents])
    stage.plane.counts(stage.tenant)  # the router has taken them by then
    return worker, session, idents


def _answer_all(stage: Stage, worker: HostileWorker, lie: Callable[[list[int]], list[bytes]]) -> None:
    """Answer until nothing is left to be answered."""

    def answer() -> bool:
        say(worker, *lie(read_ids(worker)))
        counts = stage.plane.counts(stage.tenant)
        return not counts["in_flight"] and not counts["queued"]

    stage.plane.wait_until(answer)


def answer_twice(stage: Stage) -> None:
    """Every answer two times, and once more as an error: the client gets one."""
    begun = _begin(stage, 10)
    if begun is None:
        return
    worker, session, owed = begun
    _answer_all(stage, worker, lambda ids: [*_respond(*ids, *ids), *_respond(*ids, kind=Kind.ERROR)])
    take_answers(session, owed)


def answer_for_others(stage: Stage) -> None:
    """Ids of other workers, of nobody, and of what is still to come."""
    worker = stage.work()
    say(worker, *_respond(*range(40)), *_respond((1 << 64) - 1))
    say(worker, *_respond(*range(10), kind=Kind.CANCEL), *_respond(*range(10), kind=Kind.TOLD))


def answer_unread(stage: Stage) -> None:
    """Reads nothing, and answers what it guesses: what waits for it must not pile up."""
    worker, session = stage.work(), stage.knock()
    if session is None:
        return
    for ident in range(1, 60):
        if not send_all(session, [session.request(ident) + bytes(60_000)]):
            return
        stage.plane.counts(stage.tenant)
        if not say(worker, *_respond(ident)):
            return


def answer_late(stage: Stage) -> None:
    """After the client has gone, and after the slot has."""
    begun = _begin(stage, 4)
    if begun is None:
        return
    worker, session, _ = begun
    ids = read_ids(worker)
    before = stage.plane.counts(stage.tenant)["sessions"]
    session.close()
    stage.plane.wait_until(lambda: stage.plane.counts(stage.tenant)["sessions"] < before)
    say(worker, *_respond(*ids))
    stage.lose(worker)


def lie_in_rows(stage: Stage) -> None:
    """Answers whose headers are anything: they pass, and are the client's to refuse."""
    begun = _begin(stage, 8)
    if begun is None:
        return
    worker, _, _ = begun
    for _ in range(10):
        for ident in read_ids(worker):
            draw = stage.draw()
            say(worker, make_packet(draw, make_rows(draw, 2), draw.piece(), ident=ident, kind=Kind.RESPONSE))
        if not stage.plane.counts(stage.tenant)["in_flight"]:
            return


def lie_in_notes(stage: Stage) -> None:
    """Acknowledgements of nothing, words that are the router's, notes of odd lengths."""
    worker = stage.work()
    for _ in range(40):
        draw = stage.draw(40)
        word = draw.pick((*(int(word) for word in Word), 0, 255))
        say(worker, encode_note(Note(word, draw.number(32), draw.number())), draw.piece() or b"x")


def stop_reading(stage: Stage) -> None:
    """To the brim, with descriptors in the queue; then it hangs up."""
    stage.plane.change(stage.tenant, max_inflight=1000)
    try:
        worker = stage.work()
        for turn in range(20):
            session = stage.knock()
            if session is None:
                break
            size = 60_000 if turn < 10 else 4
            send_all(session, [session.request(ident) + bytes(size) for ident in range(1, 5)])
            stage.plane.counts(stage.tenant)
        if stage.rng.random() < 0.5:
            read_ids(worker, stage.rng.randrange(1, 40))
        stage.lose(worker)
    finally:
        stage.plane.change(stage.tenant, max_inflight=2)


def hang_up_in_a_batch(stage: Stage) -> None:
    """Answers some of a batch; the others are tried once more elsewhere, and then fail."""
    before = stage.plane.tenants[stage.tenant].models
    stage.plane.set_models(stage.tenant, [BATCHED])
    stage.plane.publish()
    try:
        begun = _begin(stage, 8)
        if begun is None:
            return
        worker, session, owed = begun
        ids = read_ids(worker)
        say(worker, *_respond(*ids[: len(ids) // 2]))
        stage.lose(worker)
        second = stage.work()
        stage.plane.wait_until(lambda: stage.plane.counts(stage.tenant)["in_flight"])
        read_ids(second, 3)
        stage.lose(second)
        third = stage.work()
        _answer_all(stage, third, lambda ids: _respond(*ids))
        take_answers(session, owed)
    finally:
        stage.plane.change(stage.tenant, models=before or stage.plane.tenants[stage.tenant].models)


def dial_again(stage: Stage) -> None:
    """More connections to its slot than it may have, some of them silent."""
    path = str(stage.plane.run_dir / "slots" / stage.work().slot / "fd.sock")
    for turn in range(100):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link, contextlib.suppress(OSError):
            link.setblocking(False)
            link.connect(path)
            if turn % 2:
                link.send(wire.pack_packet(Kind.READY, 0), socket.MSG_NOSIGNAL)


def never_ready(stage: Stage) -> None:
    """Requests wait for a worker that is there and never says READY; the client leaves."""
    worker = stage.work()
    worker.link.close()
    session = stage.knock()
    if session is not None:
        send_all(session, [session.request(ident) for ident in range(1, 80)])


def talk_nonsense_on_zmq(stage: Stage) -> None:
    """Its ZeroMQ lane: half greetings, nonsense, many parts, answers to nothing."""
    worker, session = stage.work(), stage.knock("zmq")
    if session is None:
        return
    path = stage.plane.run_dir / "slots" / worker.slot / "router.sock"
    for size in (1, 63):
        link = stage.keep(socket.socket(socket.AF_UNIX))
        with contextlib.suppress(OSError):
            link.connect(str(path))
            link.send(GREETING[:size])
    peer = stage.keep(greet(str(path)))
    with contextlib.suppress(OSError):
        peer.settimeout(0.2)
        peer.sendall(b"\x01\x00" * 20_000 + b"\x00\x00")
        peer.sendall(stage.rng.randbytes(300))
    send_all(session, [session.request(ident) for ident in range(1, 5)])
    stage.plane.counts(stage.tenant)
    say(worker, *_respond(*read_ids(worker)))


STEPS: Final[Sequence[Callable[[Stage], None]]] = (
    *(answer_twice, answer_for_others, answer_unread, answer_late, lie_in_rows, lie_in_notes, stop_reading),
    *(hang_up_in_a_batch, dial_again, never_ready, talk_nonsense_on_zmq),
)
