"""The synchronous client and its link, against a router that the test plays: who reads for whom, deadlines and ends."""

import gc
import os
import random
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch

from bedsit.ipc import wire
from bedsit.ipc.client import Client
from bedsit.ipc.errors import BedsitError, error
from bedsit.ipc.forks import generation
from bedsit.ipc.link import Link
from bedsit.ipc.wire import INLINE_BYTES, Kind
from tests_support.packets import arena_ref, make_info, row_of, take_apart
from tests_support.routers import DEADLINE_S, Far, PlayedRouter, echo_in_any_order, played
from tests_support.slots import wait_until

_INFO = make_info()
_ONCE = make_info(idempotent=False)
_LONG_S = 60.0
_SHORT_S = 0.15


def _x(value: float, elements: int = 4) -> dict[str, Any]:
    return {"x": np.full(elements, value, np.float32)}


@pytest.fixture(params=["fast", "zmq"])
def lane(request: Any) -> Any:
    """The name of a lane."""
    return request.param


@pytest.fixture
def router(tmp_path: Path) -> Iterator[PlayedRouter]:
    """A router with one model, which is not called again after it may have run."""
    with played(tmp_path, _ONCE) as router:
        yield router


class Calls:
    """Calls of one client in threads of their own, each in flight by the time that it is given back."""

    def __init__(self, router: PlayedRouter, lane: Any = "fast", **options: Any) -> None:
        self.client = Client("acme", run_dir=router.run_dir, lane=lane, **options)
        self._pool = ThreadPoolExecutor(32)
        opened = self._pool.submit(self.client.empty, 1)
        self.far: Far = router.next_session()
        opened.result(DEADLINE_S)
        link = self.client._link
        assert link is not None
        self.link: Link = link

    def call(self, value: float, timeout_s: float | None = _LONG_S, elements: int = 4) -> "tuple[Future[Any], bytes]":
        """A call whose request has arrived, and whose thread reads, or sleeps because another one does."""
        waiting = len(self.link._waiting)
        reading = self.link._reading.locked()
        future = self._pool.submit(self.client.infer, "m", _x(value, elements), timeout_s=timeout_s)
        packet = self.far.next_request()
        wait_until(lambda: len(self.link._waiting) > waiting if reading else self.link._reading.locked(), "it waits")
        return future, packet

    def run(self, what: Callable[..., Any], *arguments: Any, **options: Any) -> "Future[Any]":
        """Anything else in a thread of its own."""
        return self._pool.submit(what, *arguments, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self._pool.shutdown()


def _value(future: "Future[Any]") -> float:
    """The first element of a call's output."""
    return float(future.result(DEADLINE_S)["y"][0])


def _code(future: "Future[Any]") -> str:
    """The code with which a call failed."""
    failure = future.exception(DEADLINE_S)
    assert isinstance(failure, BedsitError), failure
    failure.__traceback__ = None
    return failure.code


# --- who reads for whom -----------------------------------------------------------------------------------------------


def test_one_call(router: PlayedRouter, lane: Any) -> None:
    """What was asked for is answered, and nothing stays reserved."""
    with Calls(router, lane) as calls:
        for number in range(20):
            future, packet = calls.call(number)
            calls.far.echo(packet)
            assert _value(future) == number
        assert calls.link.session.in_flight() == 0
        assert not calls.link._reading.locked()
        assert calls.link._waiting == {}


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [3, 0, 5, 1, 4, 2], [1, 2, 3, 4, 5, 0]])
def test_answers_may_come_in_any_order(router: PlayedRouter, lane: Any, order: list[int]) -> None:
    """Whoever reads hands each answer to its caller; a caller that is done hands the reading on."""
    with Calls(router, lane) as calls:
        pending = [calls.call(number) for number in range(6)]
        for number in order:
            future, packet = pending[number]
            calls.far.echo(packet)
            assert _value(future) == number  # each at once, whoever reads just now
        assert calls.link._waiting == {}


def test_the_reading_goes_from_one_to_the_next(router: PlayedRouter, lane: Any) -> None:
    """The first one answered is always the one that reads: no wake-up is lost on the way."""
    with Calls(router, lane) as calls:
        for turn in range(20):
            pending = [calls.call(number + turn) for number in range(4)]
            for number, (future, packet) in enumerate(pending):
                calls.far.echo(packet)
                assert _value(future) == number + turn


@pytest.mark.parametrize(
    ("lane", "threads", "each", "spin_us"), [("fast", 8, 500, 0), ("fast", 8, 200, 50), ("zmq", 8, 150, 0)]
)
def test_some_thousand_calls_of_many_threads(tmp_path: Path, lane: Any, threads: int, each: int, spin_us: int) -> None:
    """Answered in random order: every call gets its own answer, inline or in the arena, and none waits for ever."""
    with (
        played(tmp_path, _INFO, play=echo_in_any_order(seed=threads * each)) as router,
        Client("acme", run_dir=router.run_dir, lane=lane, spin_us=spin_us) as client,
        ThreadPoolExecutor(threads) as pool,
    ):

        def work(number: int) -> int:
            chance = random.Random(number)
            right = 0
            for call in range(each):
                x = np.full(chance.choice((0, 1, 3, 200, 2000)), number * each + call, np.float32)
                y = client.infer("m", {"x": x}, timeout_s=_LONG_S)["y"]
                right += y.shape == x.shape and bool((y == x).all())
            return right

        assert sum(pool.map(work, range(threads))) == threads * each
        assert client._link is not None
        assert client._link.session.in_flight() == 0
        assert client._link._waiting == {}
        assert not client._link._reading.locked()


def test_threads_that_give_up_do_not_take_the_reading_with_them(tmp_path: Path, lane: Any) -> None:
    """Between calls with all the time in the world are calls with next to none: the former all get their answers."""
    with (
        played(tmp_path, _INFO, play=echo_in_any_order(seed=3)) as router,
        Client("acme", run_dir=router.run_dir, lane=lane) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        client.describe("m")

        def work(number: int) -> int:
            right = 0
            for call in range(100):
                hurried = (number + call) % 3 == 0
                try:
                    y = client.infer("m", _x(call), timeout_s=0.0003 if hurried else _LONG_S)["y"]
                    right += int(y[0] == call)
                except BedsitError as e:
                    assert hurried
                    assert e.code in ("deadline.exceeded", "queue.full")
                    right += 1
            return right

        assert sum(pool.map(work, range(8))) == 800
        link = client._link
        assert link is not None
        while link.session.in_flight():  # late answers to calls that were withdrawn are read by the calls after them
            client.infer("m", _x(1))
        assert link.session.arena.free_bytes() == link.session.arena.size


class _JustGiven:
    """The lock of the reading as it looks to a thread that comes while another one gives it back: taken, then free."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._looks = 0

    def acquire(self, *, blocking: bool = True) -> bool:
        self._looks += 1
        return self._looks > 1 and self._lock.acquire(blocking=blocking)

    def release(self) -> None:
        self._lock.release()

    def locked(self) -> bool:
        return self._lock.locked()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_a_reading_that_is_given_back_just_now_is_taken_over(router: PlayedRouter) -> None:
    """Whoever reads saw nobody waiting, and gave it back: the thread that is about to sleep looks once more."""
    with Calls(router) as calls:
        calls.link._reading = _JustGiven()  # type: ignore[assignment]
        future = calls.run(calls.client.infer, "m", _x(1), timeout_s=_LONG_S)
        calls.far.echo(calls.far.next_request())
        assert _value(future) == 1


def test_a_thread_that_never_calls_is_not_needed(router: PlayedRouter) -> None:
    """Nothing runs between calls: answers that come late are read by the next call."""
    with Calls(router) as calls:
        gone, late = calls.call(1, _SHORT_S, 5000)
        assert _code(gone) == "deadline.exceeded"
        del gone
        calls.far.send(wire.pack_error(wire.read_route(late)[1], error("request.cancelled", "as you wish")))
        assert calls.link.session.in_flight() == 1
        future, packet = calls.call(2)
        calls.far.echo(packet)
        assert _value(future) == 2
        assert calls.link.session.in_flight() == 0
        gc.collect()
        assert calls.link.session.arena.free_bytes() > calls.link.session.arena.size - 2 * 4096


# --- deadlines --------------------------------------------------------------------------------------------------------


def test_the_deadline_of_who_reads_leaves_the_others_their_answers(router: PlayedRouter, lane: Any) -> None:
    """It ends in ``deadline.exceeded``, withdraws its request, and one of the others reads on."""
    with Calls(router, lane) as calls:
        first, packet = calls.call(1, _SHORT_S)
        others = [calls.call(number) for number in (2, 3)]
        assert _code(first) == "deadline.exceeded"
        assert calls.far.next_cancel() == wire.read_route(packet)[1]
        wait_until(calls.link._reading.locked, "another one reads")
        for number, (future, request) in zip((2, 3), others, strict=True):
            calls.far.echo(request)
            assert _value(future) == number


def test_the_deadline_of_who_sleeps_is_its_own(router: PlayedRouter, lane: Any) -> None:
    """It wakes by itself and withdraws; whoever reads goes on, and the late answer is nobody's."""
    with Calls(router, lane) as calls:
        first, request = calls.call(1)
        second, packet = calls.call(2, _SHORT_S)
        assert _code(second) == "deadline.exceeded"
        assert calls.far.next_cancel() == wire.read_route(packet)[1]
        assert calls.link._waiting == {}
        calls.far.echo(packet)
        calls.far.echo(request)
        assert _value(first) == 1
        assert calls.link.session.in_flight() == 0


def test_a_deadline_that_has_passed_waits_for_nothing(router: PlayedRouter) -> None:
    """Also while another thread reads, or opens the session."""
    with Calls(router) as calls:
        first, request = calls.call(1)
        done = calls.run(calls.client.infer, "m", _x(2), timeout_s=0.0)
        calls.far.next_request()
        assert _code(done) == "deadline.exceeded"
        calls.far.echo(request)
        assert _value(first) == 1


def test_opening_the_session_takes_no_longer_than_the_caller_has(tmp_path: Path) -> None:
    """A door that does not answer: each thread ends at its own deadline, whoever is at the door."""
    (tmp_path / "router").mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, ThreadPoolExecutor(1) as pool:
        listener.bind(str(tmp_path / "router" / "door.sock"))
        listener.listen(4)
        client = Client("acme", run_dir=str(tmp_path))
        first = pool.submit(client.infer, "m", _x(1), timeout_s=_LONG_S)
        wait_until(client._connecting.locked, "somebody is at the door")
        for timeout_s in (0.0, 0.05):
            with pytest.raises(BedsitError) as caught:
                client.infer("m", _x(2), timeout_s=timeout_s)
            assert caught.value.code == "deadline.exceeded"
        assert not first.done()
        (tmp_path / "router" / "door.sock").unlink()
        knocking, _ = listener.accept()
        knocking.close()
        assert _code(first) == "router.unavailable"
        client.close()


def test_who_is_at_the_door_of_a_router_that_ends_knocks_again(tmp_path: Path) -> None:
    """It was let in and not yet answered: the next router may answer. Where no door is left there is none."""
    (tmp_path / "router").mkdir()
    door = tmp_path / "router" / "door.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, ThreadPoolExecutor(1) as pool:
        listener.bind(str(door))
        listener.listen(4)
        listener.settimeout(_LONG_S)
        with Client("acme", run_dir=str(tmp_path)) as client:
            first = pool.submit(client.infer, "m", _x(1), timeout_s=_LONG_S)
            listener.accept()[0].close()
            again, _ = listener.accept()
            door.unlink()
            again.close()
            assert _code(first) == "router.unavailable"


def test_nobody_at_the_door_is_said_at_once(tmp_path: Path) -> None:
    """A client that was never connected does not wait for a router that may never come."""
    with Client("acme", run_dir=str(tmp_path)) as client:
        for action in (lambda: client.infer("m", _x(1)), client.models, lambda: client.empty(4)):
            with pytest.raises(BedsitError) as caught:
                action()
            assert caught.value.code == "router.unavailable"


# --- ends -------------------------------------------------------------------------------------------------------------


def test_closing_wakes_everybody(router: PlayedRouter, lane: Any) -> None:
    """Whoever reads and whoever sleeps ends in ``request.cancelled``; afterwards the client says that it is closed."""
    with Calls(router, lane) as calls:
        pending = [calls.call(number, None)[0] for number in range(6)]
        calls.client.close()
        assert [_code(future) for future in pending] == ["request.cancelled"] * 6
        with pytest.raises(BedsitError) as caught:
            calls.client.infer("m", _x(1))
        assert caught.value.code == "request.invalid"
        calls.client.close()


def test_closing_ends_requests_that_nobody_waits_for_yet(router: PlayedRouter, lane: Any) -> None:
    """What was begun is over as well, and holds no memory."""
    with Calls(router, lane) as calls:
        begun = [calls.link.begin(_ONCE, None, _x(n, 5000), 0, 3) for n in range(3)]
        assert calls.link.session.in_flight() == 3
        calls.client.close()
        for pending in begun:
            with pytest.raises(BedsitError) as caught:
                calls.link.finish(pending, 0)
            assert caught.value.code == "request.cancelled"
        assert calls.link.session.arena.free_bytes() >= calls.link.session.arena.size - 4096


def test_closing_from_many_threads_while_many_call(tmp_path: Path, lane: Any) -> None:
    """Every call ends, in an answer or in one of two errors, and no error of a socket gets out."""
    for _ in range(5):
        with played(tmp_path, _INFO, play=echo_in_any_order(seed=5)) as router, ThreadPoolExecutor(10) as pool:
            client = Client("acme", run_dir=router.run_dir, lane=lane)
            client.describe("m")
            started = threading.Barrier(9)

            def work(client: Client = client, started: threading.Barrier = started) -> str:
                started.wait(DEADLINE_S)
                while True:
                    try:
                        client.infer("m", _x(1), timeout_s=_LONG_S)
                    except BedsitError as e:
                        return e.code

            working = [pool.submit(work) for _ in range(8)]
            started.wait(DEADLINE_S)
            closing = [pool.submit(client.close) for _ in range(2)]
            for future in closing:
                future.result(DEADLINE_S)
            assert {future.result(DEADLINE_S) for future in working} <= {"request.cancelled", "request.invalid"}


def test_the_end_of_the_router_ends_every_call(router: PlayedRouter, lane: Any) -> None:
    """Requests that may have run end in ``router.restarted``; each error is its own."""
    with Calls(router, lane) as calls:
        pending = [calls.call(number)[0] for number in range(6)]
        router.close()
        assert [_code(future) for future in pending] == ["router.restarted"] * 6
        assert len({id(future.exception()) for future in pending}) == 6
        assert calls.link.is_over()


def test_a_call_of_an_idempotent_model_survives_the_router(tmp_path: Path, lane: Any) -> None:
    """It is sent again, once, to the next router, under a new session."""
    with played(tmp_path, _INFO) as router, Calls(router, lane) as calls:
        future, _ = calls.call(5)
        router.restart()
        far = router.next_session()
        far.echo(far.next_request())
        assert _value(future) == 5
        assert calls.client._link is not calls.link
        future = calls.run(calls.client.infer, "m", _x(6), timeout_s=_LONG_S)
        far.next_request()
        router.restart()
        far = router.next_session()
        far.next_request()
        router.restart()
        assert _code(future) == "router.restarted"


def test_what_never_left_is_sent_to_the_next_router_whatever_the_model(router: PlayedRouter) -> None:
    """A router that restarted between two calls costs nobody an error, not even where nothing may run twice."""
    with Calls(router) as calls:
        for value in (1, 2):
            future, packet = calls.call(value)
            calls.far.echo(packet)
            assert _value(future) == value
            router.restart()
            again = calls.run(calls.client.infer, "m", _x(10 * value), timeout_s=_LONG_S)
            calls.far = router.next_session()
            calls.far.echo(calls.far.next_request())
            assert _value(again) == 10 * value
            link = calls.client._link
            assert link is not None
            calls.link = link


def test_an_interrupt_lets_the_others_go_on(router: PlayedRouter) -> None:
    """Ctrl-C in the thread that reads: its request is withdrawn, and another one reads on."""
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    try:
        with Calls(router) as calls:
            future, packet = calls.call(0)
            calls.far.echo(packet)
            assert _value(future) == 0
            main = threading.main_thread().ident
            assert main is not None

            def play() -> Any:
                first = calls.far.next_request()
                wait_until(calls.link._reading.locked, "the main thread reads")
                other, request = calls.call(2)
                signal.pthread_kill(main, signal.SIGUSR1)
                assert calls.far.next_cancel() == wire.read_route(first)[1]
                calls.far.echo(request)
                return _value(other)

            playing = calls.run(play)
            with pytest.raises(KeyboardInterrupt):
                calls.client.infer("m", _x(1), timeout_s=_LONG_S)
            assert playing.result(DEADLINE_S) == 2
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_garbage_from_the_router_is_malformed(router: PlayedRouter) -> None:
    """The call that read it says so; the others, and the calls after it, get their answers."""
    with Calls(router) as calls:
        reader, _ = calls.call(1)
        other, request = calls.call(2)
        calls.far.send(b"\xff" * 100)
        assert _code(reader) == "wire.malformed"
        calls.far.echo(request)
        assert _value(other) == 2


# --- room -------------------------------------------------------------------------------------------------------------


def _stuff(calls: Calls) -> int:
    """Send until the router's end takes nothing more; how many packets that were. ZeroMQ passes them on for a while."""
    packet = wire.pack_packet(Kind.CANCEL, 1 << 50, bytes(4000))
    sent = refused = 0
    while refused < 50:
        with calls.link._state:
            taken = calls.link._lane.send(packet)
        sent, refused = sent + taken, 0 if taken else refused + 1
        if not taken:
            calls.link._lane.wait_for_room(0.002)
    return sent


def _swallow(far: Far, count: int) -> None:
    for _ in range(count):
        assert far.receive()


def test_a_send_that_finds_no_room_waits_no_longer_than_its_deadline(router: PlayedRouter, lane: Any) -> None:
    """Then it is ``queue.full``: nothing was sent, nothing stays reserved, and the next call finds room again."""
    with Calls(router, lane) as calls:
        future, packet = calls.call(1)
        calls.far.echo(packet)
        assert _value(future) == 1
        del future
        stuffed = _stuff(calls)
        for elements in (4, 50_000):
            full = calls.run(calls.client.infer, "m", _x(2, elements), timeout_s=_SHORT_S)
            assert _code(full) == "queue.full"
            del full
        gc.collect()
        assert calls.link.session.in_flight() == 0
        assert calls.link.session.arena.free_bytes() >= calls.link.session.arena.size - 2 * 4096
        _swallow(calls.far, stuffed)
        future, packet = calls.call(3)
        calls.far.echo(packet)
        assert _value(future) == 3


def test_many_sends_that_find_no_room_all_get_through(router: PlayedRouter, lane: Any) -> None:
    """Eight threads wait for room at once, a ninth for an answer: no thread's waiting is in another one's way."""
    with Calls(router, lane) as calls:
        reader, first = calls.call(0)
        stuffed = _stuff(calls)
        pushing = [calls.run(calls.client.infer, "m", _x(number), timeout_s=_LONG_S) for number in range(1, 9)]
        wait_until(lambda: calls.link.session.in_flight() == 9, "all of them want to send")
        calls.far.echo(first)
        assert _value(reader) == 0
        _swallow(calls.far, stuffed)
        for request in [calls.far.next_request() for _ in range(8)]:
            calls.far.echo(request)
        assert [_value(future) for future in pushing] == list(range(1, 9))


def test_closing_wakes_who_waits_for_room(router: PlayedRouter, lane: Any) -> None:
    """A send that nobody takes ends with the client."""
    with Calls(router, lane) as calls:
        future, packet = calls.call(1)
        calls.far.echo(packet)
        _value(future)
        _stuff(calls)
        pushing = [calls.run(calls.client.infer, "m", _x(1), timeout_s=None) for _ in range(4)]
        wait_until(lambda: calls.link.session.in_flight() == 4, "all of them want to send")
        calls.client.close()
        assert [_code(future) for future in pushing] == ["request.cancelled"] * 4


def test_who_waits_for_room_reads_meanwhile(tmp_path: Path) -> None:
    """Both ends full of packets for each other is no deadlock: the client takes answers while it wants to send."""
    with (
        played(tmp_path, _INFO, play=echo_in_any_order(seed=1, most=1)) as router,
        Client("acme", run_dir=router.run_dir) as client,
    ):
        results = client.infer_many("m", [_x(n, 1000) for n in range(1000)], window=1000, timeout_s=_LONG_S)
        assert [float(result["y"][0]) for result in results] == list(range(1000))


# --- what answers ask for ---------------------------------------------------------------------------------------------


def _refuse(far: Far, code: str, **detail: Any) -> bytes:
    """Answer the next request with an error; gives the request."""
    packet = far.next_request()
    far.send(wire.pack_error(wire.read_route(packet)[1], error(code, "told to", **detail)))
    return packet


def test_a_moved_model_is_asked_for_and_called_again(router: PlayedRouter) -> None:
    """The new default may take other things: what was believed is forgotten, and the same inputs go to it."""
    with Calls(router) as calls:
        future, packet = calls.call(1)
        assert take_apart(packet).envelope.model_version == 2
        router.infos.append(make_info(version=9))
        calls.far.send(wire.pack_error(wire.read_route(packet)[1], error("model.moved", "to 9")))
        packet = calls.far.next_request()
        assert take_apart(packet).envelope.model_version == 9
        calls.far.echo(packet)
        assert _value(future) == 1


def test_outputs_that_need_more_room_get_it(router: PlayedRouter) -> None:
    """After ``output.too_small`` the same request is sent with rooms as large as the answer said."""
    with Calls(router) as calls:
        future = calls.run(calls.client.infer, "m", _x(7), timeout_s=_LONG_S)
        assert take_apart(_refuse(calls.far, "output.too_small", needed=[100_000])).regions == ()
        packet = calls.far.next_request()
        sent = take_apart(packet)
        assert sent.regions[0].capacity >= 100_000
        header = row_of(arena_ref((25_000,), sent.regions[0].offset))
        calls.far.send(wire.pack_packet(Kind.RESPONSE, sent.envelope.id, header, tensors=1))
        assert future.result(DEADLINE_S)["y"].shape == (25_000,)


@pytest.mark.parametrize("code", ["model.moved", "output.too_small"])
def test_a_worker_that_always_asks_for_another_try_ends_the_call(router: PlayedRouter, code: str) -> None:
    """However often: the call ends in that error, also one without a deadline."""
    with Calls(router) as calls:
        future = calls.run(calls.client.infer, "m", _x(7), timeout_s=None)
        for tries in range(1, 100):
            _refuse(calls.far, code, needed=[tries])
            if _ends(future, calls.far):
                break
        assert _code(future) == code
        assert tries < 20


def _ends(future: "Future[Any]", far: Far) -> bool:
    """Whether the call is over, or has sent something else."""
    wait_until(lambda: future.done() or _peek(far), "it ends or goes on")
    return future.done()


def _peek(far: Far) -> bool:
    try:
        return bool(far.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return False


def test_questions_are_answered_and_refused(router: PlayedRouter) -> None:
    """``models`` and ``describe``; an error is the router's own; what is no answer is ``wire.malformed``."""
    with Calls(router) as calls:
        asking = calls.run(calls.client.models)
        calls.far.tell(calls.far.receive())
        assert asking.result(DEADLINE_S) == {"m": [2]}
        asking = calls.run(calls.client.describe, "m")
        calls.far.tell(calls.far.receive())
        assert asking.result(DEADLINE_S) == _ONCE.manifest
        assert calls.client.describe("m") == _ONCE.manifest  # it is known by now
        for reply, code in (
            (lambda i: wire.pack_error(i, error("model.not_found", "no")), "model.not_found"),
            (lambda i: wire.pack_map(Kind.TOLD, i, {"number": "x"}), "wire.malformed"),
            (lambda i: wire.pack_map(Kind.TOLD, i, None), "wire.malformed"),
            (lambda i: wire.pack_map(Kind.TOLD, i, {"number": 1, "version": 1, "manifest": b"\xc1"}), "wire.malformed"),
        ):
            asking = calls.run(calls.client.describe, "stranger")
            calls.far.send(reply(wire.read_route(calls.far.receive())[1]))
            assert _code(asking) == code


# --- many at once -----------------------------------------------------------------------------------------------------


def test_many_calls_keep_a_window_full(router: PlayedRouter, lane: Any) -> None:
    """Never more than *window* are under way, always that many while there are; the results are in order."""
    with Calls(router, lane) as calls:
        asking = calls.run(calls.client.infer_many, "m", [_x(n) for n in range(20)], window=4, timeout_s=_LONG_S)
        held = [calls.far.next_request() for _ in range(4)]
        for _ in range(16):
            assert len(held) == 4
            assert calls.link.session.in_flight() <= 4
            calls.far.echo(held.pop(0))
            held.append(calls.far.next_request())
        for packet in reversed(held):
            calls.far.echo(packet)
        assert [float(result["y"][0]) for result in asking.result(DEADLINE_S)] == list(range(20))


def test_the_first_failure_of_many_withdraws_the_rest(router: PlayedRouter, lane: Any) -> None:
    """It is raised once everything else that was under way has been withdrawn; nothing more is sent."""
    with Calls(router, lane) as calls:
        asking = calls.run(calls.client.infer_many, "m", [_x(n) for n in range(20)], window=4, timeout_s=_LONG_S)
        held = [calls.far.next_request() for _ in range(4)]
        idents = [wire.read_route(packet)[1] for packet in held]
        calls.far.send(wire.pack_error(idents[0], error("model.failed", "no")))
        assert _code(asking) == "model.failed"
        assert [calls.far.next_cancel() for _ in range(3)] == idents[1:]
        assert calls.far.look() is None


def test_a_deadline_bounds_many_calls_together(router: PlayedRouter) -> None:
    """Those that were answered do not help: it is ``deadline.exceeded``, and the rest is withdrawn."""
    with Calls(router) as calls:
        asking = calls.run(calls.client.infer_many, "m", [_x(n) for n in range(9)], window=3, timeout_s=_SHORT_S)
        held = [calls.far.next_request() for _ in range(3)]
        assert _code(asking) == "deadline.exceeded"
        assert sorted(calls.far.next_cancel() for _ in range(3)) == [wire.read_route(packet)[1] for packet in held]


def test_many_calls_survive_the_router(tmp_path: Path, lane: Any) -> None:
    """What was under way is sent again to the next one, where the model allows it; the order stays."""
    with played(tmp_path, _INFO) as router, Calls(router, lane) as calls:
        asking = calls.run(calls.client.infer_many, "m", [_x(n) for n in range(6)], window=3, timeout_s=_LONG_S)
        for _ in range(3):
            calls.far.next_request()
        router.restart()
        far = router.next_session()
        answered = 0
        while answered < 6:
            far.echo(far.next_request())
            answered += 1
        assert [float(result["y"][0]) for result in asking.result(DEADLINE_S)] == list(range(6))


def test_a_bad_request_among_many_ends_them(router: PlayedRouter) -> None:
    """A wrong input is ``input.invalid`` as in a single call; a window of none is ``request.invalid``."""
    with Calls(router) as calls:
        asking = calls.run(calls.client.infer_many, "m", [_x(1), {"w": 1}], timeout_s=_LONG_S)
        packet = calls.far.next_request()
        assert _code(asking) == "input.invalid"
        assert calls.far.next_cancel() == wire.read_route(packet)[1]
        with pytest.raises(BedsitError) as caught:
            calls.client.infer_many("m", [], window=0)
        assert caught.value.code == "request.invalid"
        assert calls.client.infer_many("m", []) == []


# --- memory, tensors, processes ---------------------------------------------------------------------------------------


def test_arrays_of_the_client_are_passed_where_they_lie(router: PlayedRouter) -> None:
    """``empty`` gives memory of this session; ``trim`` gives back what nobody uses, and no more."""
    with Calls(router) as calls:
        array = calls.client.empty((100, 50))
        array[...] = 3.0
        calling = calls.run(calls.client.infer, "m", {"x": array.reshape(-1)}, timeout_s=_LONG_S)
        packet = calls.far.next_request()
        sent = take_apart(packet)
        assert calls.link.session.arena.address + sent.refs[0].offset == array.ctypes.data
        assert os.pread(calls.far.arena_fd, 4, sent.refs[0].offset) == np.float32(3.0).tobytes()
        os.pwrite(calls.far.arena_fd, np.full(5000, 4.0, np.float32).tobytes(), sent.regions[0].offset)
        header = row_of(arena_ref((5000,), sent.regions[0].offset))
        calls.far.send(wire.pack_packet(Kind.RESPONSE, sent.envelope.id, header, tensors=1))
        y = calling.result(DEADLINE_S)["y"]
        calls.client.trim()
        assert (y == 4.0).all()
        assert (array == 3.0).all()


def test_a_client_for_tensors_gives_tensors(router: PlayedRouter, lane: Any) -> None:
    """And takes them."""
    with Calls(router, lane, tensors="torch") as calls:
        calling = calls.run(calls.client.infer, "m", {"x": torch.full((4,), 5.0)}, timeout_s=_LONG_S)
        calls.far.echo(calls.far.next_request())
        assert calling.result(DEADLINE_S)["y"].equal(torch.full((4,), 5.0))


def test_arrays_outlive_their_client(router: PlayedRouter) -> None:
    """What was handed out stays valid after the session's end."""
    with Calls(router) as calls:
        array = calls.client.empty(INLINE_BYTES)
        array[...] = 7.0
        calls.client.close()
    router.close()
    assert (array == 7.0).all()


def _in_child(action: Callable[[], Any]) -> str:
    """What *action* gives in a forked child; ``hung`` when it gives nothing."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        try:
            text = str(action())
        except BedsitError as e:
            text = e.code
        except BaseException as e:  # noqa: BLE001 - a child of pytest must not come back from here
            text = repr(e)
        os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    return text or "hung"


def test_a_forked_child_is_told_and_the_parent_goes_on(router: PlayedRouter) -> None:
    """Even in the middle of a call, with every lock taken: the child hangs nowhere and ends nothing of its parent's."""
    here = generation()
    with Calls(router) as calls:
        future, packet = calls.call(1)
        with calls.link._state:
            assert _in_child(lambda: calls.client.infer("m", _x(1), timeout_s=None)) == "request.invalid"
            assert _in_child(lambda: calls.client.empty(4)) == "request.invalid"
            assert _in_child(calls.client.close) == "None"
            assert _in_child(lambda: generation() - here) == "1"
        calls.far.echo(packet)
        assert _value(future) == 1
        assert generation() == here


def test_a_client_that_is_dropped_leaves_nothing(tmp_path: Path, lane: Any) -> None:
    """Ten clients, each closed after a call, or after none: no descriptor, thread or mapping stays."""
    with played(tmp_path, _INFO, play=echo_in_any_order(seed=2)) as router:
        before = threading.active_count()
        for number in range(10):
            with Client("acme", run_dir=router.run_dir, lane=lane) as client:
                if number % 2:
                    client.infer("m", _x(number))
        Client("acme", run_dir=router.run_dir).close()
        wait_until(lambda: threading.active_count() <= before, "only the router's own thread is left")
