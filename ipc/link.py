"""One live session of the synchronous client: its door, its lane, its arena, and who reads for whom.

Threads that wait for answers take turns at reading: one of them reads, and wakes whoever an answer is for; when it has
its own, it hands the reading on. So a single caller never wakes another thread, and many never wait for each other.
"""

import contextlib
import threading
import time
from collections.abc import Mapping
from copy import copy
from typing import Any, Final

from bedsit.ipc.arena import Arena
from bedsit.ipc.door import ANSWER_S, Door, ModelInfo
from bedsit.ipc.errors import BedsitError, error
from bedsit.ipc.fastlane import PacketChannel
from bedsit.ipc.forks import generation
from bedsit.ipc.lane import Channel, LaneName
from bedsit.ipc.session import Pending, Session, Tensors
from bedsit.ipc.spin import Spin

#: How often a waiting client looks whether the router is still there, where its lane does not say.
_DOOR_CHECK_S: Final = 0.1


class Link:
    """Made by opening the door, which blocks until *deadline_ns* at most. Thread-safe."""

    answer_s: Final = ANSWER_S
    """How long the router may take for an answer of its own, in seconds."""

    def __init__(
        self,
        tenant: str | None,
        key: str | None,
        run_dir: str | None,
        *,
        lane: LaneName,
        tensors: Tensors,
        spin_us: int,
        deadline_ns: int = 0,
    ) -> None:
        self.models: dict[tuple[str, int], ModelInfo] = {}
        self._door = Door(run_dir, timeout_s=_until(deadline_ns))
        try:
            opened = self._door.open(tenant, key, lane=lane, timeout_s=_until(deadline_ns))
            self.session = Session(Arena(opened.arena_fd, opened.arena_bytes, opened.arena_number), tensors)
            self._lane = self._open_lane(lane, opened.endpoint, opened.token)
        except BaseException:
            self._door.close()
            raise
        self._fast = lane == "fast"
        self._spin = Spin(spin_us) if spin_us else None
        self._failure: BedsitError | None = None  # why it is over
        self._state = threading.Lock()  # the session, and sending
        self._generation = generation()
        self._reading = threading.Lock()
        self._waiting: dict[Pending, None] = {}  # threads that sleep until they are woken, oldest first

    def is_over(self) -> bool:
        """Whether nothing can be asked here any more."""
        return self._failure is not None or self._lane.ended or (not self._fast and self._door.is_closed())

    def is_ours(self) -> bool:
        """Whether this process made it, and not its parent before a fork."""
        return self._generation == generation()

    def ask(self, question: Mapping[str, Any], deadline_ns: int) -> Any:
        """Put a question to the router itself; blocks for its answer, ten seconds at most."""
        with self._state:
            pending, packet = self.session.ask(question)
        limit_ns = time.monotonic_ns() + int(ANSWER_S * 1e9)
        deadline_ns = min(deadline_ns, limit_ns) if deadline_ns else limit_ns
        self._send(pending, packet, deadline_ns)
        return self.finish(pending, deadline_ns)

    def begin(
        self, info: ModelInfo, version: int | None, inputs: Mapping[str, Any], deadline_ns: int, priority: int
    ) -> Pending:
        """Send a request. Blocks only while the router takes nothing from this session."""
        with self._state:
            pending, packet = self.session.begin(info, version, inputs, deadline_ns, priority)
            sent = self._lane.send(packet)
        if not sent:
            self._send(pending, packet, deadline_ns)
        return pending

    def finish(self, pending: Pending, deadline_ns: int) -> Any:
        """Wait for the answer and give it. Raises what it is where it is an error, and ``deadline.exceeded``."""
        try:
            while not pending.done:
                if self._reading.acquire(blocking=False):
                    try:
                        while not pending.done:
                            self._read(deadline_ns)
                    finally:
                        self._reading.release()
                else:
                    self._sleep(pending, deadline_ns)
        except BaseException:
            self.withdraw(pending)
            raise
        finally:
            # Also by who never read: it may have been woken to do so, and found its own answer there.
            self._hand_on()
        return pending.take()

    def withdraw(self, pending: Pending) -> None:
        """Stop waiting for an answer; what the request holds is free when the router has given its final answer."""
        with self._state:
            if not pending.done and not self.is_over():
                self._lane.send(self.session.withdraw(pending))

    def learn_sizes(self, info: ModelInfo, failure: BedsitError) -> bool:
        """See ``Session.learn_sizes``."""
        with self._state:
            return self.session.learn_sizes(info, failure)

    def close(self, failure: BedsitError) -> None:
        """Hang up; whoever waits gets *failure*. The descriptors are closed once nobody reads from them."""
        with self._state:
            if self._failure is None:
                self._failure = failure
                self._door.hang_up()  # wakes whoever reads
        with self._reading, self._state:
            self._lane.close()
            self._door.close()
            ended = self.session.fail_all(failure)
        self._wake(ended)

    def abandon(self) -> None:
        """In a forked child: let go of the parent's connection so that the session ends with the parent."""
        self._door.close()

    def _open_lane(self, lane: LaneName, endpoint: str, token: bytes) -> Channel:
        if lane == "fast":
            return PacketChannel(self._door.socket)
        import zmq  # noqa: PLC0415 - libzmq starts threads, and only this lane needs it

        from bedsit.ipc.zmqlane import SharedChannel, ZmqChannel  # noqa: PLC0415 - the same

        return SharedChannel(ZmqChannel(zmq.Context.instance(), endpoint, token=token))

    def _send(self, pending: Pending, packet: bytes, deadline_ns: int) -> None:
        """Send as soon as there is room. A router that takes nothing is held off by this tenant's full queue."""
        while True:
            with self._state:
                if self.is_over():
                    self.session.forget(pending)
                    if self._failure is not None and self._failure.code != "router.restarted":
                        raise copy(self._failure)
                    raise error("router.unavailable", "the router went away before it had the request")
                if self._lane.send(packet):
                    return
            wait_s = _left(deadline_ns)
            if wait_s <= 0:
                with self._state:
                    self.session.forget(pending)
                raise error("queue.full", "the router takes nothing from this session", "wait for answers first")
            if self._reading.acquire(blocking=False):
                try:
                    if self._failure is None:  # closing it takes the reading first
                        self._lane.wait_for_room(min(wait_s, _DOOR_CHECK_S))
                        self._drain()
                finally:
                    self._reading.release()
                    self._hand_on()
            else:
                self._lane.wait_for_room(min(wait_s, 0.001))  # somebody else reads what comes

    def _read(self, deadline_ns: int) -> None:
        """Read one packet, or find out that there will be none. Only by who holds the reading."""
        wait_s = _left(deadline_ns)
        if wait_s <= 0:
            raise error("deadline.exceeded", "no answer in time", "raise timeout_s, or look at `bedsit ps`")
        receive = self._lane.receive
        packet = self._spin.wait(receive) if self._spin is not None else None
        if packet is None:
            packet = self._lane.wait(min(wait_s, _DOOR_CHECK_S))
        if packet is not None:
            self._accept(packet)
        elif self.is_over():
            self._end()

    def _drain(self) -> None:
        while (packet := self._lane.receive()) is not None:
            self._accept(packet)

    def _accept(self, packet: bytes) -> None:
        with self._state:
            pending = self.session.accept(packet)
            waiter = pending.waiter if pending is not None else None
        if waiter is not None:
            waiter.set()

    def _end(self) -> None:
        with self._state:
            if self._failure is None:
                self._failure = error("router.restarted", "the router went away before it answered")
            ended = self.session.fail_all(self._failure)
        self._wake(ended)

    def _sleep(self, pending: Pending, deadline_ns: int) -> None:
        """Wait until the answer is there, or the reading is free."""
        event = threading.Event()
        with self._state:
            if pending.done:
                return
            pending.waiter = event
            self._waiting[pending] = None
        try:
            # Whoever had the reading may have handed it on before this thread was among the waiting.
            if self._reading.acquire(blocking=False):
                self._reading.release()
                return
            wait_s = _left(deadline_ns)
            if wait_s <= 0 or not event.wait(min(wait_s, threading.TIMEOUT_MAX)):
                raise error("deadline.exceeded", "no answer in time", "raise timeout_s, or look at `bedsit ps`")
        finally:
            with self._state:
                pending.waiter = None
                self._waiting.pop(pending, None)

    def _hand_on(self) -> None:
        """Wake one of the waiting, if the reading is free."""
        if self._waiting and not self._reading.locked():
            with self._state, contextlib.suppress(StopIteration):
                next(iter(self._waiting)).waiter.set()

    @staticmethod
    def _wake(ended: list[Pending]) -> None:
        for pending in ended:
            waiter = pending.waiter
            if waiter is not None:
                waiter.set()


def _left(deadline_ns: int) -> float:
    """Seconds until the deadline; a very long time where there is none."""
    return (deadline_ns - time.monotonic_ns()) / 1e9 if deadline_ns else threading.TIMEOUT_MAX


def _until(deadline_ns: int) -> float:
    """How long the door may take, in seconds."""
    return min(ANSWER_S, _left(deadline_ns))
