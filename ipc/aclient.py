"""The asyncio client: the same session as `Client`, with many requests in flight at once."""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, TypeVar

import zmq
from numpy.typing import NDArray

from bedsit.ipc.arena import Arena
from bedsit.ipc.door import Door, ModelInfo, Opened
from bedsit.ipc.errors import BedsitError, error
from bedsit.ipc.lane import Channel, ZmqChannel
from bedsit.ipc.session import Pending, Result, Session, deadline_after

T = TypeVar("T")


class AsyncClient:
    """A session with one tenant's models, for one event loop. Arguments and errors are those of `Client`."""

    def __init__(self, tenant: str | None = None, key: str | None = None, *, run_dir: str | None = None) -> None:
        self._tenant = tenant
        self._key = key
        self._run_dir = run_dir
        self._link: _AsyncLink | None = None
        self._opening = asyncio.Lock()
        self._closed = False

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        version: int | None = None,
        timeout_s: float | None = 30.0,
    ) -> Result:
        """Call *model* and return its outputs by name; see ``Client.infer``. Cancelling withdraws the request."""
        deadline_ns = deadline_after(timeout_s)
        retried = asked_again = False
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    link = await self._connect()
                    try:
                        info = await link.describe(model, version)
                    except BedsitError as e:
                        # The router went away between two calls. Nothing was sent: ask the new one.
                        self._raise_if_closed()
                        if e.code not in ("router.unavailable", "router.restarted") or asked_again:
                            raise
                        link.close(error("router.restarted", "the router went away before it answered"))
                        asked_again = True
                        continue
                    try:
                        return await link.call(info, version, inputs, deadline_ns)
                    except BedsitError as e:
                        if e.code == "output.too_small" and link.session.learn_sizes(info, e):
                            continue
                        if e.code == "input.invalid":
                            link.models.clear()
                            if await link.describe(model, version) != info:
                                continue
                        if e.code == "router.restarted":
                            self._raise_if_closed()
                        if e.code != "router.restarted" or retried or not info.manifest.idempotent:
                            raise
                        retried = True
        except TimeoutError:
            raise error("deadline.exceeded", "no answer in time", "raise timeout_s, or look at `bedsit ps`") from None

    async def empty(self, shape: int | Sequence[int], dtype: Any = "float32") -> NDArray[Any]:
        """An uninitialised array in this session's shared memory; see ``Client.empty``."""
        return (await self._connect()).session.arena.empty(shape, dtype)

    async def models(self) -> dict[str, list[int]]:
        """The tenant's models with their versions, the default one first."""
        link = await self._connect()
        return await link.ask(link.door.list_models)

    async def aclose(self) -> None:
        """End the session; requests in flight end in ``request.cancelled``."""
        self._closed = True
        if self._link is not None:
            self._link.close(error("request.cancelled", "the client was closed"))
            self._link = None

    def _raise_if_closed(self) -> None:
        if self._closed:
            raise error("request.cancelled", "the client was closed")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _connect(self) -> "_AsyncLink":
        if self._closed:
            raise error("request.invalid", "the client is closed")
        async with self._opening:
            if self._link is not None and self._link.pid != os.getpid():
                raise error(
                    "request.invalid", "this client belongs to the parent process", "make a new one after a fork"
                )
            restarting = self._link is not None and self._link.lost
            if restarting:
                self._link = None
            while self._link is None:
                try:
                    self._link = await self._open()
                except BedsitError as e:
                    # A router that was there before is on its way back; the caller's deadline bounds the wait.
                    if e.code != "router.unavailable" or not restarting:
                        raise
                    await asyncio.sleep(0.02)
            return self._link

    async def _open(self) -> "_AsyncLink":
        loop = asyncio.get_running_loop()
        knocking = loop.run_in_executor(None, _knock, self._run_dir, self._tenant, self._key)
        try:
            door, opened = await asyncio.shield(knocking)
        except asyncio.CancelledError:
            # The thread goes on; what it brings is closed when it comes.
            knocking.add_done_callback(_turn_away)
            raise
        try:
            return _AsyncLink(door, opened)
        except BaseException:
            door.close()
            raise


def _knock(run_dir: str | None, tenant: str | None, key: str | None) -> tuple[Door, Opened]:
    door = Door(run_dir)
    try:
        return door, door.open(tenant, key)
    except BaseException:
        door.close()
        raise


def _turn_away(knocking: "asyncio.Future[tuple[Door, Opened]]") -> None:
    if not knocking.cancelled() and knocking.exception() is None:
        door, opened = knocking.result()
        door.close()
        os.close(opened.arena_fd)


class _AsyncLink:
    """One live session on the running loop: its door, its lane, its arena."""

    def __init__(self, door: Door, opened: Opened) -> None:
        self.pid = os.getpid()
        self.door = door
        self.models: dict[tuple[str, int], ModelInfo] = {}
        self.session = Session(Arena(opened.arena_fd, opened.arena_bytes, opened.arena_number))
        self.lane: Channel = ZmqChannel(zmq.Context.instance(), opened.endpoint, token=opened.token)
        self.lost = False
        self._asking = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self.lane.fileno(), self._drain)
        self._loop.add_reader(door.fileno(), self._look_at_door)

    async def ask(self, question: Callable[..., T], *args: Any) -> T:
        """Put a question to the door in a thread, one at a time."""
        async with self._asking:
            if self.lost:
                raise error("router.restarted", "the router went away")
            # The answer must reach the thread that asks, not the reader that watches for the door's end.
            self._loop.remove_reader(self.door.fileno())
            try:
                return await asyncio.to_thread(question, *args)
            finally:
                if not self.lost:
                    self._loop.add_reader(self.door.fileno(), self._look_at_door)

    async def describe(self, model: str, version: int | None) -> ModelInfo:
        key = (model, version or 0)
        info = self.models.get(key)
        if info is None:
            info = self.models[key] = await self.ask(self.door.describe, model, version)
        return info

    async def call(self, info: ModelInfo, version: int | None, inputs: Mapping[str, Any], deadline_ns: int) -> Result:
        pending, packet = self.session.begin(info, version, inputs, deadline_ns)
        pending.waiter = self._loop.create_future()
        if self.lost or not self.lane.send(packet):
            self.session.forget(pending)
            if self.lost:
                raise error("router.restarted", "the router went away")
            raise error("queue.full", "this session has too many unsent requests", "wait for answers first")
        self._loop.call_soon(self._drain)  # a send may have swallowed the edge of an arrival
        try:
            await pending.waiter
        except asyncio.CancelledError:
            if not pending.done and not self.lost:
                self.lane.send(self.session.withdraw(pending))
            raise
        return pending.take()

    def close(self, failure: BedsitError) -> None:
        if self.lost:
            return
        self.lost = True
        self._loop.remove_reader(self.lane.fileno())
        self._loop.remove_reader(self.door.fileno())
        self.lane.close()
        self.door.close()
        for pending in self.session.fail_all(failure):
            _wake(pending)

    def _drain(self) -> None:
        if self.lost:
            return
        while (packet := self.lane.receive()) is not None:
            finished = self.session.accept(packet)
            if finished is not None:
                _wake(finished)

    def _look_at_door(self) -> None:
        if self.door.is_closed():
            self.close(error("router.restarted", "the router went away before it answered"))


def _wake(pending: Pending) -> None:
    if pending.waiter is not None and not pending.waiter.done():
        pending.waiter.set_result(None)
