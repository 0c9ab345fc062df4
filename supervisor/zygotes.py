"""Zygotes: finding a running generation again, getting the next one, asking the current one for slots.

A generation is never restarted: when it dies, or a newer bedsit takes over, the next number starts beside it, and its
slots live on. One that hangs is ended, and counts as dead. How it becomes a process is its starter's business; it is
found by its socket's name.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import bedsit
from bedsit.ipc.errors import BedsitError, error
from bedsit.supervisor.generations import Generations
from bedsit.supervisor.log import get_log
from bedsit.supervisor.starters import ChildStarter, Starter
from bedsit.supervisor.zygote import Zygote

#: Importing torch takes two seconds; from a cold disk, or on an emulated processor, a minute.
_START_S: Final = 120.0
_RETRY_S: Final = 0.02
#: A zygote whose daemon was killed while it started may listen later than the one that follows it. So it is looked for
#: again after this time, and after twice that each time, for as long as one may take to start.
_AGAIN_S: Final = 5.0


class Zygotes:
    """The current generation and how to get the next one.

    *up* hears of one that answers and how often it forked, *down* of one that ended or did not start, and why.
    """

    def __init__(
        self,
        folder: Path,
        up: Callable[[int, int], None],
        down: Callable[[int, str], None],
        starter: Starter | None = None,
    ) -> None:
        self._generations = Generations(folder)
        self._starter = starter or ChildStarter(self._generations)
        self._up = up
        self._down = down
        self._starting: asyncio.Task[None] | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._again: asyncio.TimerHandle | None = None
        self._dirty = False
        self._retiring: dict[int, asyncio.Task[None]] = {}
        self._former: Zygote | None = None
        self.current: Zygote | None = None

    async def find(self) -> None:
        """Connect to the newest living generation of this version; ask the others to exit."""
        for generation in sorted(self._generations.list(), reverse=True):
            zygote = await self._meet(generation)
            if zygote is None:
                continue
            if self.current is None and await self._is_ours(zygote):
                self.current = zygote
                self._up(generation, zygote.forks)
            else:
                await zygote.stop()
                self._generations.forget_socket(generation)

    def start(self) -> None:
        """Start the next generation; *up* or *down* is called later. The current one serves until then."""
        self._starting = asyncio.get_running_loop().create_task(self._start())

    def retire(self, generation: int) -> None:
        """Ask a generation that is not the current one any more to exit, after what it was asked for before."""
        if self._former is not None and self._former.generation == generation:
            self._retiring[generation] = asyncio.get_running_loop().create_task(self._retire(self._former))
            self._former = None

    async def spawn(self, request: Mapping[str, Any], fds: Sequence[int]) -> dict[str, Any]:
        """Ask the current generation for a slot; see Zygote.spawn."""
        if self.current is None:
            raise error("internal", "no zygote runs")
        return await self.current.spawn(request, fds)

    def pid_of(self, generation: int) -> int | None:
        """The process of that generation, if it is the current one."""
        zygote = self.current
        return zygote.pid if zygote is not None and zygote.generation == generation else None

    def sweep(self) -> None:
        """A zygote or a slot is gone: see whether a generation left something that nobody needs; and again later."""
        self._sweep_now()
        self._sweep_after(_AGAIN_S)

    def _sweep_after(self, delay_s: float) -> None:
        if self._again is not None:
            self._again.cancel()
        self._again = asyncio.get_running_loop().call_later(delay_s, self._sweep_again, delay_s)

    def _sweep_again(self, waited_s: float) -> None:
        self._sweep_now()
        if waited_s < _START_S:
            self._sweep_after(2 * waited_s)

    def _sweep_now(self) -> None:
        self._dirty = True
        if self._sweeping is None or self._sweeping.done():
            self._sweeping = asyncio.get_running_loop().create_task(self._sweep())

    async def close(self, *, stop: bool) -> None:
        """Let go of the zygote, or *stop* it and wait until it and what is left of older ones is gone."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        if not stop:  # the next daemon asks them again
            for task in self._retiring.values():
                task.cancel()
        await asyncio.gather(*self._retiring.values(), return_exceptions=not stop)
        zygote, self.current = self.current, None
        if zygote is not None and stop:
            await zygote.stop()
            self._generations.forget_socket(zygote.generation)
        elif zygote is not None:
            zygote.close()
        if self._again is not None:
            self._again.cancel()
        if stop:
            self._sweep_now()
        elif self._sweeping is not None:
            self._sweeping.cancel()
        if self._sweeping is not None:
            await asyncio.gather(self._sweeping, return_exceptions=not stop)

    async def _start(self) -> None:
        generation = self._generations.next_number()
        try:
            await self._starter.start(generation)
            try:
                zygote = await self._connect(generation)
            except BaseException:
                await self._starter.abandon(generation)
                self._generations.forget_socket(generation)
                raise
        except (BedsitError, OSError) as e:
            where = self._starter.where_to_look(generation)
            self._down(generation, f"generation {generation} did not start: {e}; see {where}")
            self.sweep()
            return
        self._former, self.current = self.current, zygote
        self._up(generation, zygote.forks)
        self.sweep()  # one that a killed daemon was starting listens by now

    async def _retire(self, zygote: Zygote) -> None:
        try:
            await zygote.stop()
            self._generations.forget_socket(zygote.generation)
        finally:
            zygote.close()
            del self._retiring[zygote.generation]
        self.sweep()

    async def _connect(self, generation: int) -> Zygote:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _START_S
        while True:
            if why := await self._starter.failure(generation):
                raise error("internal", why)
            try:
                zygote = Zygote(generation, self._generations.socket(generation), self._ended)
                break
            except (FileNotFoundError, ConnectionRefusedError):
                if loop.time() > deadline:
                    raise error("internal", f"no socket within {_START_S:g} s") from None
                await asyncio.sleep(_RETRY_S)
        try:
            await zygote.greet()
            self._starter.admit(generation, zygote.pid)
        except BaseException:
            zygote.close()
            raise
        return zygote

    async def _meet(self, generation: int) -> Zygote | None:
        """Connect to one of an earlier daemon. One with whom that cannot be done is ended, if it lives."""
        try:
            return Zygote(generation, self._generations.socket(generation), self._ended)
        except BlockingIOError:  # nobody takes connections there any more
            get_log().warning("zygote.hangs", generation=generation)
        except OSError:  # it died, or starts still and would listen when nobody knows of it
            pass
        await self._starter.abandon(generation)
        self._generations.forget_socket(generation)
        return None

    async def _is_ours(self, zygote: Zygote) -> bool:
        try:
            await zygote.greet()
            if zygote.version != bedsit.__version__:
                return False
            self._starter.admit(zygote.generation, zygote.pid)
        except (BedsitError, OSError) as e:
            get_log().warning("zygote.foreign", generation=zygote.generation, error=str(e))
            return False
        return True

    async def _sweep(self) -> None:
        while self._dirty:
            self._dirty = False
            try:
                await self._stop_strays()
                await self._starter.sweep(self._living())
                self._generations.forget_ended(self._living())
            except (BedsitError, OSError) as e:  # the next sweep tries again
                get_log().error("sweep.failed", error=str(e))

    def _living(self) -> set[int]:
        known = (self.current, self._former)
        return {*self._retiring, *(zygote.generation for zygote in known if zygote is not None)}

    async def _stop_strays(self) -> None:
        """Older generations that listen and belong to nobody: their daemon died before it wrote down who they are."""
        is_starting = self._starting is not None and not self._starting.done()
        ours = self.current.generation if self.current else 0 if is_starting else self._generations.next_number()
        for generation in sorted(set(self._generations.list()) - self._living()):
            if generation < ours and self._generations.socket(generation).exists():
                zygote = await self._meet(generation)
                if zygote is not None:
                    await zygote.stop()
                    self._generations.forget_socket(generation)

    def _ended(self, generation: int, cause: str) -> None:
        self._generations.forget_socket(generation)
        if self.current is not None and self.current.generation == generation:
            self.current = None
        self.sweep()
        self._down(generation, cause)
