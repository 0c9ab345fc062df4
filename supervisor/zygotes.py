"""Zygotes: starting the next generation, finding a running one again, asking it for slots.

A generation is never restarted: when it dies, or a newer bedsit takes over, the next number starts beside it, and its
slots live on. The process gets an empty environment and its own session, and it is found by its socket's name.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import bedsit
from bedsit.ipc.errors import BedsitError, error
from bedsit.supervisor.log import get_log
from bedsit.supervisor.watch import EndWatch, PacketLink

PROTOCOL: Final = 1
_START_S: Final = 30.0
_SPAWN_S: Final = 15.0
_HELLO_S: Final = 5.0
_STOP_S: Final = 5.0
_RETRY_S: Final = 0.02
#: OpenBLAS starts a thread at import unless told otherwise, and a process with threads must not fork slots.
_ENVIRONMENT: Final = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


class Zygote:
    """One generation, connected. *ended* is called once when it is gone."""

    def __init__(self, generation: int, socket_path: Path, ended: Callable[[str], None]) -> None:
        self.generation = generation
        self.pid = 0
        self.version = ""
        self.forks = 0
        self._ended = ended
        self._hello: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._spawns: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._watch: EndWatch | None = None
        self._gone = asyncio.Event()
        self._link = PacketLink(str(socket_path), self._hear, self._close_spawns)

    async def greet(self) -> None:
        """Learn who it is. Raises ``internal`` when it does not answer or speaks another protocol."""
        self._link.send({"op": "hello"})
        try:
            hello = await asyncio.wait_for(asyncio.shield(self._hello), _HELLO_S)
        except TimeoutError:
            raise error("internal", f"zygote {self.generation} does not answer") from None
        if hello.get("protocol") != PROTOCOL or hello.get("generation") != self.generation:
            raise error("internal", f"zygote {self.generation} speaks another protocol")
        self.pid, self.version, self.forks = hello["pid"], hello["version"], hello["forks"]
        self._watch = EndWatch(self.pid, self._mourn)

    async def spawn(self, request: Mapping[str, Any], fds: Sequence[int]) -> dict[str, Any]:
        """Ask for one blank slot; gives the zygote's answer. The caller keeps its *fds*.

        Raises ``jail.refused`` with the step that failed, ``internal`` when the zygote goes away meanwhile.
        """
        slot = request["slot"]
        answer = asyncio.get_running_loop().create_future()
        self._spawns[slot] = answer
        try:
            self._link.send({"op": "spawn", **request}, list(fds))
            reply: dict[str, Any] = await asyncio.wait_for(answer, _SPAWN_S)
        except TimeoutError:
            raise error("jail.refused", f"the zygote did not answer within {_SPAWN_S:g} s") from None
        finally:
            del self._spawns[slot]
        if not reply.get("ok"):
            number = reply.get("errno") or 0
            why = f" ({os.strerror(number)})" if number else ""
            raise error("jail.refused", f"step {reply.get('step')}: {reply.get('message')}{why}")
        self.forks += 1
        return reply

    async def stop(self) -> None:
        """Ask it to exit and wait until it has let go of us; slots live on. One that does not is killed."""
        if self._watch is not None:
            self._watch.close()  # its end is no news now
        try:
            self._link.send({"op": "stop"})
            await asyncio.wait_for(self._gone.wait(), _STOP_S)
        except BedsitError:
            pass  # it is gone already
        except TimeoutError:
            if self.pid:
                os.kill(self.pid, signal.SIGKILL)
        self.close()
        _reap(self.pid)

    def close(self) -> None:
        """Let go of it, alive: the next daemon finds it."""
        self._link.close()
        self._close_spawns()
        if self._watch is not None:
            self._watch.close()

    def _hear(self, message: dict[str, Any]) -> None:
        waiting = self._spawns.get(message.get("slot", "")) if "slot" in message else self._hello
        if waiting is not None and not waiting.done():
            waiting.set_result(message)

    def _close_spawns(self) -> None:
        self._gone.set()
        for waiting in (*self._spawns.values(), self._hello):
            if not waiting.done():
                waiting.set_exception(error("internal", f"zygote {self.generation} went away"))
                waiting.exception()  # nobody may be waiting; that is no bug

    def _mourn(self) -> None:
        self.close()
        _reap(self.pid)
        self._ended(f"generation {self.generation} (pid {self.pid}) ended")


class Zygotes:
    """The current generation and how to get the next one. *up* and *down* hear what becomes of it."""

    def __init__(self, folder: Path, up: Callable[[int], None], down: Callable[[str], None]) -> None:
        self._folder = folder
        self._up = up
        self._down = down
        self._starting: asyncio.Task[None] | None = None
        self.current: Zygote | None = None

    async def find(self) -> None:
        """Connect to the newest living generation of this version; ask the others to exit."""
        for generation in sorted(self._generations(), reverse=True):
            try:
                zygote = Zygote(generation, self._socket(generation), self._ended)
            except OSError:  # nobody listens: it died
                self._socket(generation).unlink(missing_ok=True)
                continue
            try:
                await zygote.greet()
            except (BedsitError, OSError) as e:
                get_log().warning("zygote.foreign", generation=generation, error=str(e))
            if self.current is None and zygote.version == bedsit.__version__:
                self.current = zygote
                self._up(generation)
            else:
                await zygote.stop()

    def start(self) -> None:
        """Start the next generation; *up* or *down* is called later."""
        self._starting = asyncio.get_running_loop().create_task(self._start())

    async def spawn(self, request: Mapping[str, Any], fds: Sequence[int]) -> dict[str, Any]:
        """Ask the current generation for a slot; see Zygote.spawn."""
        if self.current is None:
            raise error("internal", "no zygote runs")
        return await self.current.spawn(request, fds)

    async def close(self, *, stop: bool) -> None:
        """Let go of the zygote, or *stop* it and wait until it is gone."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        zygote, self.current = self.current, None
        if zygote is None:
            return
        if stop:
            await zygote.stop()
            self._socket(zygote.generation).unlink(missing_ok=True)
        else:
            zygote.close()

    async def _start(self) -> None:
        generation = max(self._generations(), default=0) + 1
        path = self._socket(generation)
        try:
            pid = self._exec(generation, path)
            try:
                zygote = await self._connect(generation, path, pid)
            except BaseException:
                _kill(pid)
                path.unlink(missing_ok=True)
                raise
        except (BedsitError, OSError) as e:
            self._down(f"generation {generation} did not start: {e}; see {path.with_suffix('.log')}")
            return
        self.current = zygote
        self._up(generation)

    def _exec(self, generation: int, path: Path) -> int:
        log = str(path.with_suffix(".log"))
        argv = [sys.executable, "-I", "-m", "bedsit.sandbox.zygote", "--socket", str(path), "--generation"]
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        return os.posix_spawn(
            sys.executable,
            [*argv, str(generation)],
            _ENVIRONMENT,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, log, flags, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=(signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGHUP),
        )

    async def _connect(self, generation: int, path: Path, pid: int) -> Zygote:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _START_S
        while True:
            if _reap(pid):
                raise error("internal", "it ended while starting")
            try:
                zygote = Zygote(generation, path, self._ended)
                break
            except (FileNotFoundError, ConnectionRefusedError):
                if loop.time() > deadline:
                    raise error("internal", f"no socket within {_START_S:g} s") from None
                await asyncio.sleep(_RETRY_S)
        try:
            await zygote.greet()
        except BaseException:
            zygote.close()
            raise
        return zygote

    def _ended(self, cause: str) -> None:
        if self.current is not None:
            self._socket(self.current.generation).unlink(missing_ok=True)
        self.current = None
        self._down(cause)

    def _socket(self, generation: int) -> Path:
        return self._folder / f"{generation}.sock"

    def _generations(self) -> list[int]:
        """Every generation that left a trace: numbers are not used twice in one run folder."""
        traces = (path.stem for path in self._folder.iterdir() if path.suffix in (".sock", ".log"))
        return sorted({int(stem) for stem in traces if stem.isdigit()})


def _reap(pid: int) -> bool:
    """Collect an ended child. False: it runs, or is not ours to collect."""
    try:
        return pid > 0 and os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return False


def _kill(pid: int) -> None:
    """End a child that did not come up."""
    try:
        if os.waitpid(pid, os.WNOHANG)[0] == 0:  # a child that runs: its pid cannot be anybody else's
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    except ChildProcessError:
        return
