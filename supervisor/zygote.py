"""One running generation: asking it for slots, telling it to stop, hearing of its end."""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bedsit.ipc.errors import BedsitError, error
from bedsit.supervisor.log import get_log
from bedsit.supervisor.watch import PacketLink

PROTOCOL: Final = 3
#: Above the zygote's own deadline for one slot: who says nothing for so long will not say anything any more.
_SPAWN_S: Final = 15.0
_HELLO_S: Final = 5.0
_STOP_S: Final = 5.0
_EXIT_S: Final = 1.0


class Zygote:
    """One generation, connected. *ended* is called once when it is gone after it was greeted, unless it was told to go.

    One that lives and is of no use, because it hangs or has closed its connection, is killed: the next one starts then.
    Raises OSError when nobody listens, BlockingIOError when nobody has taken a connection for long.
    """

    def __init__(self, generation: int, socket_path: Path, ended: Callable[[int, str], None]) -> None:
        self.generation = generation
        self.version = ""
        self.forks = 0
        self._ended = ended
        self._is_needed = self._is_lost = False
        self._heard_at = 0.0
        self._over = asyncio.Event()
        self._hello: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._spawns: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._link = PacketLink(str(socket_path), self._hear, self._lose)
        try:
            self._watch = self._link.watch_peer(self._mourn)
        except OSError:
            self._link.close()
            raise
        self.pid = self._watch.pid

    async def greet(self) -> None:
        """Learn who it is. Raises ``internal`` when it does not answer or speaks another protocol."""
        self._link.send({"op": "hello"})
        try:
            hello = await asyncio.wait_for(asyncio.shield(self._hello), _HELLO_S)
        except TimeoutError:
            raise error("internal", f"zygote {self.generation} does not answer") from None
        if hello.get("protocol") != PROTOCOL or hello.get("generation") != self.generation:
            raise error("internal", f"zygote {self.generation} speaks another protocol")
        if self._is_lost:  # between its answer and now
            raise error("internal", f"zygote {self.generation} went away")
        self.version, self.forks = hello["version"], hello["forks"]
        self._is_needed = True

    async def spawn(self, request: Mapping[str, Any], fds: Sequence[int]) -> dict[str, Any]:
        """Ask for one blank slot; gives the zygote's answer. The caller keeps its *fds*.

        Raises ``jail.refused`` with the step that failed, ``internal`` when the zygote goes away meanwhile.
        """
        slot = request["slot"]
        answer = asyncio.get_running_loop().create_future()
        self._spawns[slot] = answer
        try:
            self._link.send({"op": "spawn", **request}, list(fds))
            reply = await self._wait_answer(answer)
        finally:
            del self._spawns[slot]
        if not reply.get("ok"):
            number = reply.get("errno") or 0
            why = f" ({os.strerror(number)})" if number else ""
            raise error("jail.refused", f"step {reply.get('step')}: {reply.get('message')}{why}")
        self.forks += 1
        return reply

    async def _wait_answer(self, answer: "asyncio.Future[dict[str, Any]]") -> dict[str, Any]:
        """An answer, for as long as the zygote answers at all: it builds one slot at a time, and others wait."""
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        while not answer.done():
            left_s = max(asked_at, self._heard_at) + _SPAWN_S - loop.time()
            if left_s <= 0:
                self._watch.kill()
                raise error("jail.refused", f"the zygote did not answer within {_SPAWN_S:g} s")
            await asyncio.wait([answer], timeout=left_s)
        return answer.result()

    async def stop(self) -> None:
        """Ask it to exit and wait until it has; slots live on. One that does not is killed."""
        self._is_needed = False  # its end is no news now
        try:
            self._link.send({"op": "stop"})
            await asyncio.wait_for(self._over.wait(), _STOP_S)
        except (BedsitError, TimeoutError):
            self._watch.kill()
            try:
                await asyncio.wait_for(self._over.wait(), _EXIT_S)
            except TimeoutError:
                get_log().error("zygote.unkillable", generation=self.generation, pid=self.pid)
        finally:
            self.close()

    def close(self) -> None:
        """Let go of it, alive: the next daemon finds it."""
        self._link.close()
        self._close_spawns()
        self._watch.close()

    def _hear(self, message: dict[str, Any]) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        waiting = self._spawns.get(message.get("slot", "")) if "slot" in message else self._hello
        if waiting is not None and not waiting.done():
            waiting.set_result(message)

    def _lose(self) -> None:
        """The connection has ended, and as a rule the process. If not, no slot can be asked of it any more."""
        self._close_spawns()
        if self._is_needed:
            self._watch.kill()

    def _close_spawns(self) -> None:
        self._is_lost = True
        for waiting in (*self._spawns.values(), self._hello):
            if not waiting.done():
                waiting.set_exception(error("internal", f"zygote {self.generation} went away"))
                waiting.exception()  # nobody may be waiting; that is no bug

    def _mourn(self) -> None:
        self.close()
        reap(self.pid)
        self._over.set()
        if self._is_needed:
            self._ended(self.generation, f"generation {self.generation} (pid {self.pid}) ended")


def reap(pid: int) -> bool:
    """Collect an ended child. False: it runs, or is not ours to collect."""
    try:
        return pid > 0 and os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return False
