"""The synchronous client: what a program on the box uses to call a model."""

import os
import time
from collections.abc import Mapping, Sequence
from threading import TIMEOUT_MAX, RLock
from typing import Any, Final, Self

import numpy as np
import zmq
from numpy.typing import NDArray

from bedsit.ipc.arena import Arena
from bedsit.ipc.door import ANSWER_S, Door, ModelInfo
from bedsit.ipc.errors import BedsitError, error
from bedsit.ipc.lane import Channel, ZmqChannel
from bedsit.ipc.manifest import Manifest
from bedsit.ipc.session import Result, Session, deadline_after

# How often a waiting client looks whether the router is still there. A router that dies closes the door, not the lane.
_DOOR_CHECK_S: Final = 0.1
#: A router is back in a second, on a box that is out of breath in ten.
_RECONNECT_S: Final = 15.0
_RECONNECT_EVERY_S: Final = 0.02


class Client:
    """A session with one tenant's models.

    Who may be *tenant*: whoever holds one of its keys, and uid 0 without a key. Connects at the first call. Calls from
    several threads take turns. After a fork the child must make its own client.
    """

    def __init__(self, tenant: str | None = None, key: str | None = None, *, run_dir: str | None = None) -> None:
        self._tenant = tenant
        self._key = key
        self._run_dir = run_dir
        self._lock = RLock()
        self._link: _Link | None = None
        self._closed = False
        self._was_connected = False

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        version: int | None = None,
        timeout_s: float | None = 30.0,
    ) -> Result:
        """Call *model* and return its outputs by name; blocks for at most *timeout_s* (None: for ever).

        Inputs are numpy arrays or CPU torch tensors with the dtypes and shapes that the model declares. Those made
        with ``empty`` are not copied. Large outputs are views of shared memory, valid for as long as they are
        referred to. Raises BedsitError: ``input.invalid``, ``model.not_found``, ``deadline.exceeded``, ``queue.full``,
        ``model.failed``, ``worker.crashed``, ``router.unavailable`` and others of ``bedsit.ipc.errors``.

        A request whose router went away is sent again once where the model is idempotent (the default), else it ends
        in ``router.restarted``.
        """
        deadline_ns = deadline_after(timeout_s)
        lock = self._take_turn(deadline_ns)
        try:
            retried = asked_again = False
            while True:
                link = self._connect(deadline_ns)
                try:
                    info = link.describe(model, version, deadline_ns)
                except BedsitError as e:
                    # The router went away between two calls. Nothing was sent: ask the new one.
                    if e.code != "router.unavailable" or asked_again or _is_over(deadline_ns):
                        raise
                    asked_again = True
                    continue
                try:
                    return link.call(info, version, inputs, deadline_ns)
                except BedsitError as e:
                    if e.code == "output.too_small" and link.session.learn_sizes(info, e):
                        continue
                    if e.code == "input.invalid" and link.describe_again(model, version, deadline_ns) != info:
                        continue  # another version answers by now, and it takes other inputs
                    if e.code != "router.restarted":
                        raise
                    self._drop_link()
                    if retried or not info.manifest.idempotent:
                        raise
                    retried = True
        finally:
            lock.release()

    def empty(self, shape: int | Sequence[int], dtype: str | np.dtype[Any] | type = "float32") -> NDArray[Any]:
        """An uninitialised array in this session's shared memory: as an input it is passed without a copy.

        Raises ``arena.full``. The memory is given back when the last view of the array is gone and no request
        uses it.
        """
        lock = self._take_turn()
        try:
            return self._connect(0).session.arena.empty(shape, dtype)
        finally:
            lock.release()

    def models(self) -> dict[str, list[int]]:
        """The tenant's models with their versions, the default one first."""
        lock = self._take_turn()
        try:
            return self._connect(0).door.list_models()
        finally:
            lock.release()

    def describe(self, model: str, version: int | None = None) -> Manifest:
        """What a model takes and gives. Raises ``model.not_found``."""
        lock = self._take_turn()
        try:
            return self._connect(0).describe(model, version, 0).manifest
        finally:
            lock.release()

    def close(self) -> None:
        """End the session. Arrays that were handed out stay valid."""
        if self._is_the_parents():
            return
        with self._lock:
            self._closed = True
            self._drop_link()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take_turn(self, deadline_ns: int = 0) -> RLock:
        """Wait until no other thread is in a call, no longer than the deadline. Gives the lock, held."""
        if self._is_the_parents():
            raise error("request.invalid", "this client belongs to the parent process", "make a new one after a fork")
        if not self._lock.acquire(blocking=False):
            left_s = (deadline_ns - time.monotonic_ns()) / 1e9 if deadline_ns else TIMEOUT_MAX
            if not self._lock.acquire(timeout=min(max(0.0, left_s), TIMEOUT_MAX)):
                raise error("deadline.exceeded", "calls of other threads took all the time", "one client per thread")
        return self._lock

    def _is_the_parents(self) -> bool:
        """Whether this process is a child of the one that connected.

        To be asked before the lock is taken: in the child it may be held for ever, by a thread of the parent's.
        """
        if self._link is None or self._link.pid == os.getpid():
            return False
        self._link.abandon()
        return True

    def _connect(self, deadline_ns: int) -> "_Link":
        if self._closed:
            raise error("request.invalid", "the client is closed")
        if self._link is not None and self._link.door.is_closed():
            self._drop_link()
        if self._link is None:
            self._link = self._open_link(deadline_ns)
            self._was_connected = True
        return self._link

    def _open_link(self, deadline_ns: int) -> "_Link":
        """Connect. A router that was there before is restarting: try again until the deadline, or for a few seconds."""
        patience_s = _RECONNECT_S if self._was_connected else 0.0
        give_up_ns = time.monotonic_ns() + int(patience_s * 1e9)
        if deadline_ns:
            give_up_ns = min(give_up_ns, deadline_ns)
        while True:
            try:
                return _Link(self._tenant, self._key, self._run_dir, deadline_ns)
            except BedsitError as e:
                if e.code != "router.unavailable" or time.monotonic_ns() > give_up_ns:
                    raise
            time.sleep(_RECONNECT_EVERY_S)

    def _drop_link(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None


class _Link:
    """One live session: its door, its lane, its arena."""

    def __init__(self, tenant: str | None, key: str | None, run_dir: str | None, deadline_ns: int = 0) -> None:
        self.pid = os.getpid()
        self.models: dict[tuple[str, int], ModelInfo] = {}
        self.door = Door(run_dir, timeout_s=_until(deadline_ns))
        try:
            opened = self.door.open(tenant, key, timeout_s=_until(deadline_ns))
            self.session = Session(Arena(opened.arena_fd, opened.arena_bytes, opened.arena_number))
            self.lane: Channel = ZmqChannel(zmq.Context.instance(), opened.endpoint, token=opened.token)
        except BaseException:
            self.door.close()
            raise

    def describe(self, model: str, version: int | None, deadline_ns: int) -> ModelInfo:
        key = (model, version or 0)
        info = self.models.get(key)
        if info is None:
            info = self.models[key] = self.door.describe(model, version, timeout_s=_until(deadline_ns))
        return info

    def describe_again(self, model: str, version: int | None, deadline_ns: int) -> ModelInfo:
        self.models.clear()
        return self.describe(model, version, deadline_ns)

    def call(self, info: ModelInfo, version: int | None, inputs: Mapping[str, Any], deadline_ns: int) -> Result:
        pending, packet = self.session.begin(info, version, inputs, deadline_ns)
        if not self.lane.send(packet):
            self.session.forget(pending)
            raise error("queue.full", "this session has too many unsent requests", "wait for answers first")
        try:
            while not pending.done:
                self._receive(deadline_ns)
        except BaseException:
            if not pending.done:
                self.lane.send(self.session.withdraw(pending))
            raise
        return pending.take()

    def _receive(self, deadline_ns: int) -> None:
        wait_s = _DOOR_CHECK_S
        if deadline_ns:
            left_s = (deadline_ns - time.monotonic_ns()) / 1e9
            if left_s <= 0:
                raise error("deadline.exceeded", "no answer in time", "raise timeout_s, or look at `bedsit ps`")
            wait_s = min(wait_s, left_s)
        packet = self.lane.wait(wait_s)
        if packet is not None:
            self.session.accept(packet)
        elif self.door.is_closed():
            self.session.fail_all(error("router.restarted", "the router went away before it answered"))

    def close(self) -> None:
        self.lane.close()
        self.door.close()

    def abandon(self) -> None:
        """In a forked child: let go of the parent's door so that the session ends with the parent."""
        self.door.close()


def _until(deadline_ns: int) -> float:
    """How long the door may take, in seconds."""
    return min(ANSWER_S, (deadline_ns - time.monotonic_ns()) / 1e9) if deadline_ns else ANSWER_S


def _is_over(deadline_ns: int) -> bool:
    return 0 < deadline_ns <= time.monotonic_ns()
