"""One connection of the admin API as its handlers see it: what they may say, and what may still come."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any, Final, TypeVar

from bedsit.ipc.errors import BedsitError, error
from bedsit.ipc.frames import FrameReader, encode_frame

T = TypeVar("T")

_READ: Final = 256 << 10
_BODY_S: Final = 60.0
_MAX_UNSENT: Final = 8 << 20


class Call:
    """Frames in, frames out. A caller that goes away cancels only what nobody else needs."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._frames = FrameReader()
        self._inbox: list[Any] = []
        self._afterwards: list[Callable[[], None]] = []

    async def receive(self) -> Any:
        """The next frame, or None when the caller is gone. Raises ``wire.malformed``."""
        while not self._inbox:
            try:
                data = await self._reader.read(_READ)
            except OSError:
                return None
            if not data:
                return None
            self._inbox += self._frames.feed(data)
        return self._inbox.pop(0)

    async def body(self, size: int) -> AsyncGenerator[bytes, None]:
        """Ask for the *size* bytes that follow a request, and give them piece by piece."""
        await self.send({"continue": True})
        while size > 0:
            try:
                piece = await asyncio.wait_for(self.receive(), _BODY_S)
            except TimeoutError:
                raise error("deadline.exceeded", f"no piece of the archive within {_BODY_S:g} s") from None
            if not isinstance(piece, bytes) or not piece:
                raise error("wire.malformed", "the archive did not come as promised")
            size -= len(piece)
            yield piece

    async def send(self, message: dict[str, Any]) -> None:
        """Send a frame and wait until most of what is unsent has left. A caller that is gone is no error."""
        if self._writer.is_closing():
            return
        self._writer.write(encode_frame(message))
        try:
            await self._writer.drain()
        except OSError:
            self._writer.transport.abort()

    @property
    def is_over(self) -> bool:
        """Whether the caller is gone, as far as is known."""
        return self._writer.is_closing()

    def progress(self, phase: str, ms: float | None = None) -> None:
        """Tell the caller of a phase, without waiting; left out when it does not read."""
        if not self._writer.is_closing() and self._writer.transport.get_write_buffer_size() < _MAX_UNSENT:
            self._writer.write(encode_frame({"progress": {"phase": phase, "ms": ms}}))

    async def item(self, item: dict[str, Any]) -> None:
        """Send one item of a stream."""
        await self.send({"item": item})

    async def fail(self, e: BedsitError) -> None:
        """Send the error as the answer."""
        wire = e.to_wire()
        await self.send({"ok": False, "error": wire})

    async def next_of(self, queue: "asyncio.Queue[T]") -> "T | None":
        """The next thing in *queue*; None when the caller goes away (or says something, which is as good) meanwhile."""
        waiting = asyncio.ensure_future(queue.get())
        leaving = asyncio.ensure_future(self.receive())
        try:
            await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
            return None if leaving.done() else waiting.result()
        finally:
            for task in (waiting, leaving):
                task.cancel()
            await asyncio.gather(waiting, leaving, return_exceptions=True)

    async def left_within(self, seconds: float) -> bool:
        """Wait that long; True at once when the caller goes away (or says something, which is as good)."""
        try:
            await asyncio.wait_for(self.receive(), seconds)
        except TimeoutError:
            return False
        return True

    def afterwards(self, action: Callable[[], None]) -> None:
        """Do this once the answer is sent."""
        self._afterwards.append(action)

    def finish(self) -> None:
        """The answer is sent."""
        for action in self._afterwards:
            action()
