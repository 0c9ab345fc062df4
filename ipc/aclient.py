"""The asyncio client: the same session as `Client`, with many requests in flight at once."""

import asyncio
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Self

from numpy.typing import NDArray

from bedsit.ipc.arena import Arena
from bedsit.ipc.door import Door, ModelInfo, Opened, read_model_info, read_model_list
from bedsit.ipc.errors import BedsitError, error
from bedsit.ipc.fastlane import PacketChannel
from bedsit.ipc.forks import generation
from bedsit.ipc.lane import Channel, LaneName
from bedsit.ipc.manifest import Manifest
from bedsit.ipc.result import Result
from bedsit.ipc.session import Pending, Priority, Session, Tensors, deadline_after, priority_of
from bedsit.ipc.trial import Trial

_RECONNECT_EVERY_S: Final = 0.02
_RETRY_SEND_S: Final = 0.001
_WINDOW: Final = 32


class AsyncClient:
    """A session with one tenant's models, for one event loop. Arguments and errors are those of `Client`."""

    def __init__(
        self,
        tenant: str | None = None,
        key: str | None = None,
        *,
        run_dir: str | None = None,
        lane: LaneName = "fast",
        tensors: Tensors = "numpy",
    ) -> None:
        self._tenant, self._key, self._run_dir = tenant, key, run_dir
        self._lane, self._tensors = lane, tensors
        self._link: _AsyncLink | None = None
        self._opening = asyncio.Lock()
        self._generation = generation()
        self._closed = False

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        version: int | None = None,
        timeout_s: float | None = 30.0,
        priority: Priority | None = None,
    ) -> Result:
        """Call *model* and return its outputs by name; see ``Client.infer``. Cancelling withdraws the request."""
        deadline_ns = deadline_after(timeout_s)
        urgency = priority_of(priority)
        trial = Trial()
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    link = await self._connect()
                    try:
                        info = await link.describe(model, version)
                        return await link.call(info, version, inputs, deadline_ns, urgency)
                    except BedsitError as e:
                        self._raise_if_closed()
                        if not trial.may_try_again(e, link.models, (model, version or 0), link.session.learn_sizes):
                            raise
        except TimeoutError:
            raise error("deadline.exceeded", "no answer in time", "raise timeout_s, or look at `bedsit ps`") from None

    async def infer_many(
        self,
        model: str,
        requests: Iterable[Mapping[str, Any]],
        *,
        version: int | None = None,
        timeout_s: float | None = 30.0,
        priority: Priority | None = None,
        window: int = _WINDOW,
    ) -> list[Result]:
        """Call *model* once for each of *requests*, with up to *window* under way; see ``Client.infer_many``."""
        if window < 1:
            raise error("request.invalid", f"a window of {window}", "at least 1")
        room = asyncio.Semaphore(window)

        async def call_one(inputs: Mapping[str, Any]) -> Result:
            try:
                return await self.infer(model, inputs, version=version, timeout_s=None, priority=priority)
            finally:
                room.release()

        tasks: list[asyncio.Task[Result]] = []
        try:
            async with asyncio.timeout(timeout_s):
                for inputs in requests:
                    await room.acquire()
                    if any(task.done() and (task.cancelled() or task.exception()) for task in tasks[-window:]):
                        break
                    tasks.append(asyncio.create_task(call_one(inputs)))
                return list(await asyncio.gather(*tasks))
        except TimeoutError:
            raise error("deadline.exceeded", "no answer in time", "raise timeout_s, or look at `bedsit ps`") from None
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def empty(self, shape: int | Sequence[int], dtype: Any = "float32") -> NDArray[Any]:
        """An uninitialised array in this session's shared memory; see ``Client.empty``."""
        return (await self._connect()).session.arena.empty(shape, dtype)

    async def models(self) -> dict[str, list[int]]:
        """The tenant's models with their versions, the default one first."""
        return read_model_list(await (await self._connect()).ask({"op": "models"}))

    async def describe(self, model: str, version: int | None = None) -> Manifest:
        """What a model takes and gives. Raises ``model.not_found``."""
        return (await (await self._connect()).describe(model, version)).manifest

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
        if self._generation != generation():
            raise error("request.invalid", "this client belongs to the parent process", "make a new one after a fork")
        if self._link is not None and not self._link.is_over():
            return self._link
        async with self._opening:
            restarting = self._link is not None and self._link.is_over()
            if restarting:
                self._link = None
            while self._link is None:
                self._raise_if_closed()
                try:
                    link = await self._open()
                    if self._closed:  # meanwhile
                        link.close(error("request.cancelled", "the client was closed"))
                    else:
                        self._link = link
                except BedsitError as e:
                    # A router that was there before is on its way back; the caller's deadline bounds the wait.
                    if e.code != "router.unavailable" or not (restarting or e.detail.get("restarting")):
                        raise
                    await asyncio.sleep(_RECONNECT_EVERY_S)
            return self._link

    async def _open(self) -> "_AsyncLink":
        loop = asyncio.get_running_loop()
        knocking = loop.run_in_executor(None, _knock, self._run_dir, self._tenant, self._key, self._lane)
        try:
            door, opened = await asyncio.shield(knocking)
        except asyncio.CancelledError:
            # The thread goes on; what it brings is closed when it comes.
            knocking.add_done_callback(_turn_away)
            raise
        try:
            return _AsyncLink(door, opened, self._lane, self._tensors)
        except BaseException:
            door.close()
            raise


def _knock(run_dir: str | None, tenant: str | None, key: str | None, lane: LaneName) -> tuple[Door, Opened]:
    door = Door(run_dir)
    try:
        return door, door.open(tenant, key, lane=lane)
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

    def __init__(self, door: Door, opened: Opened, lane: LaneName, tensors: Tensors) -> None:
        self.models: dict[tuple[str, int], ModelInfo] = {}
        self.session = Session(Arena(opened.arena_fd, opened.arena_bytes, opened.arena_number), tensors)
        self.lost = False
        self._door = door
        self._fast = lane == "fast"
        self._loop = asyncio.get_running_loop()
        if self._fast:
            self._lane: Channel = PacketChannel(door.socket)
        else:
            import zmq  # noqa: PLC0415 - libzmq starts threads, and only this lane needs it

            from bedsit.ipc.zmqlane import ZmqChannel  # noqa: PLC0415 - the same

            self._lane = ZmqChannel(zmq.Context.instance(), opened.endpoint, token=opened.token)
            self._loop.add_reader(door.fileno(), self._look_at_door)
        self._loop.add_reader(self._lane.fileno(), self._drain)

    def is_over(self) -> bool:
        if not self._fast:  # that lane takes packets for a router that is gone, and the loop may not have looked yet
            self._look_at_door()
        return self.lost

    async def ask(self, question: Mapping[str, Any]) -> Any:
        return await self._exchange(*self.session.ask(question))

    async def describe(self, model: str, version: int | None) -> ModelInfo:
        key = (model, version or 0)
        info = self.models.get(key)
        if info is None:
            told = await self.ask({"op": "describe", "model": model, "version": version or 0})
            info = self.models[key] = read_model_info(told)
        return info

    async def call(
        self, info: ModelInfo, version: int | None, inputs: Mapping[str, Any], deadline_ns: int, priority: int
    ) -> Result:
        result: Result = await self._exchange(*self.session.begin(info, version, inputs, deadline_ns, priority))
        return result

    def close(self, failure: BedsitError) -> None:
        if self.lost:
            return
        self.lost = True
        self._loop.remove_reader(self._lane.fileno())
        self._loop.remove_reader(self._door.fileno())
        self._lane.close()
        self._door.close()
        for pending in self.session.fail_all(failure):
            _wake(pending)

    async def _exchange(self, pending: Pending, packet: bytes) -> Any:
        """Send, wait for the answer, give it."""
        pending.waiter = self._loop.create_future()
        try:
            await self._send(pending, packet)
            self._drain()  # many calls in one turn of the loop; and a send may have swallowed the edge of an arrival
            await pending.waiter
        except asyncio.CancelledError:
            if not pending.done and not self.lost:
                self._lane.send(self.session.withdraw(pending))
            raise
        return pending.take()

    async def _send(self, pending: Pending, packet: bytes) -> None:
        try:
            while not self._lane.send(packet):
                if self.lost or self._lane.ended:
                    self._drain()
                    raise error("router.unavailable", "the router went away before it had the request")
                await asyncio.sleep(_RETRY_SEND_S)  # held off by this tenant's full queue
                if self.lost:
                    raise error("router.unavailable", "the router went away before it had the request")
        except BaseException:
            self.session.forget(pending)
            raise

    def _drain(self) -> None:
        if self.lost:
            return
        while (packet := self._lane.receive()) is not None:
            finished = self.session.accept(packet)
            if finished is not None:
                _wake(finished)
        if self._lane.ended:
            self.close(error("router.restarted", "the router went away before it answered"))

    def _look_at_door(self) -> None:
        if not self.lost and self._door.is_closed():
            self.close(error("router.restarted", "the router went away before it answered"))


def _wake(pending: Pending) -> None:
    if pending.waiter is not None and not pending.waiter.done():
        pending.waiter.set_result(None)
