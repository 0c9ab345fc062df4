"""The link to the router: snapshots out, acknowledgements and news of slots in.

The daemon listens, the router comes and goes. What the router says is typed and bounded, and believed only as far as
a compromised router may be: it can end slots, which the kernel then confirms, and nothing else.
"""

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any, Final

import msgspec

from bedsit.ipc import snapshot as view
from bedsit.ipc.errors import BedsitError
from bedsit.ipc.frames import FrameReader, encode_frame
from bedsit.ipc.seqpacket import refuse_descriptors
from bedsit.supervisor import stimuli as on
from bedsit.supervisor.events import Events
from bedsit.supervisor.folders import Folders
from bedsit.supervisor.ledger import Passed, Taken
from bedsit.supervisor.log import get_log

_READ: Final = 256 << 10
#: At most one snapshot waits for the router to read it, and some small things beside it.
_MAX_UNSENT: Final = view.MAX_BYTES + (1 << 20)
_MAX_VERSION: Final = 32
_MAX_NAME: Final = 64
_UCRED: Final = struct.Struct("3i")


class Traffic(msgspec.Struct, frozen=True):
    """What the router counted for one tenant."""

    requests: int = 0
    errors: int = 0
    queued: int = 0
    in_flight: int = 0
    sessions: int = 0


class Activity(msgspec.Struct, frozen=True, array_like=True):
    """What one tenant has done: time of its workers in all, and what waits for one as time of one worker.

    *crowded*: a request came while each of them had one already; else another worker would have had nothing to do.
    """

    busy_us: int
    backlog_us: int
    crowded: bool


class UsageReport(msgspec.Struct, tag_field="op", tag="usage"):
    """What a router counted since it began, as far as it is news; *run* is its own."""

    run: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]
    rows: list[Taken]
    devices: list[Passed]


class _Hello(msgspec.Struct, tag_field="op", tag="hello"):
    pid: int
    version: str = ""


class _Ack(msgspec.Struct, tag_field="op", tag="ack"):
    serial: int


class _Drained(msgspec.Struct, tag_field="op", tag="drained"):
    slot: str


class _Lost(msgspec.Struct, tag_field="op", tag="lost"):
    slot: str
    ran: tuple[int, int] | None = None


class _Hung(msgspec.Struct, tag_field="op", tag="hung"):
    slot: str
    ran: tuple[int, int] | None
    after_s: float


class _Overran(msgspec.Struct, tag_field="op", tag="overran"):
    slot: str
    ran: tuple[int, int] | None
    on: str
    after_s: float


class _Activity(msgspec.Struct, tag_field="op", tag="activity"):
    tenants: dict[str, Activity] = {}


class _Wanted(msgspec.Struct, tag_field="op", tag="wanted"):
    tenant: str


class _Misbehaved(msgspec.Struct, tag_field="op", tag="misbehaved"):
    slot: str
    count: int = 1


class _Stats(msgspec.Struct, tag_field="op", tag="stats"):
    tenants: dict[str, Traffic] = {}
    pid: int = 0


_Message = (
    _Hello | _Ack | _Drained | _Lost | _Hung | _Overran | _Wanted | _Misbehaved | _Stats | _Activity | UsageReport
)


class Control:
    """The listener and the one router that is connected."""

    def __init__(self, folders: Folders, router_uid: int, feed: Callable[[on.Stimulus], None], events: Events) -> None:
        self._path = folders.control_socket
        self._router_uid = router_uid
        self._feed = feed
        self._events = events
        self._server: asyncio.Server | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._latest = b""
        self._behind = False
        self._acked = 0
        self._news = asyncio.Condition()
        self._stats: dict[str, Traffic] = {}
        self._stats_count = 0
        self._active: dict[str, Activity] = {}
        self._active_count = 0
        self._usage_count = 0
        self.hear_usage: Callable[[UsageReport], None] = lambda _report: None
        self.router_pid: int | None = None
        self.router_version: str | None = None

    async def open(self) -> None:
        """Listen. The socket belongs to the router's user."""
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        refuse_descriptors(listener)
        listener.bind(str(self._path))
        os.chown(self._path, self._router_uid, 0)
        self._path.chmod(0o600)
        self._server = await asyncio.start_unix_server(self._serve, sock=listener)

    def send_snapshot(self, _serial: int, encoded: bytes) -> None:
        """Send the newest snapshot now, or when a router comes. Raises ``wire.malformed`` when it is too long.

        While the router has not read what was sent before, it waits and is replaced by the next one: each says all.
        """
        self._latest = encode_frame({"op": "snapshot", "snapshot": encoded}, view.MAX_BYTES)
        self._send_latest()

    def shut_down_router(self) -> None:
        """Ask the router to exit."""
        self._send(encode_frame({"op": "shutdown"}))

    async def wait_acked(self, serial: int, timeout_s: float) -> bool:
        """Wait until the router works by *serial*. False when none is connected or it takes longer."""
        return await self._wait(lambda: self.router_pid is None or self._acked >= serial, timeout_s) and (
            self._acked >= serial
        )

    async def stats(self, timeout_s: float) -> dict[str, Traffic]:
        """What the router counted, by tenant; empty when no router answers."""
        if self._writer is None:
            return {}
        before = self._stats_count
        self._send(encode_frame({"op": "stats"}))
        fresh = await self._wait(lambda: self._stats_count > before or self._writer is None, timeout_s)
        return self._stats if fresh else {}

    async def activity(self, timeout_s: float) -> dict[str, Activity] | None:
        """What those tenants did that did anything since it was asked last; None when no router answers."""
        if self._writer is None:
            return None
        before = self._active_count
        self._send(encode_frame({"op": "activity"}))
        fresh = await self._wait(lambda: self._active_count > before or self._writer is None, timeout_s)
        return self._active if fresh and self._active_count > before else None

    async def ask_usage(self, timeout_s: float) -> bool:
        """Have the router say what it counted, to ``hear_usage``. False when it does not answer."""
        if self._writer is None:
            return False
        before = self._usage_count
        self._send(encode_frame({"op": "usage"}))
        await self._wait(lambda: self._usage_count > before or self._writer is None, timeout_s)
        return self._usage_count > before

    async def wait_gone(self, timeout_s: float) -> bool:
        """Wait until no router is connected. False when it stays."""
        return await self._wait(lambda: self.router_pid is None, timeout_s)

    async def close(self) -> None:
        """Listen no more and let go of the router."""
        if self._server is not None:
            self._server.close()
        if self._writer is not None:
            self._writer.close()
            with suppress(OSError):
                await self._writer.wait_closed()
        self._path.unlink(missing_ok=True)

    async def _wait(self, done: Callable[[], bool], timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s), self._news:
                await self._news.wait_for(done)
        except TimeoutError:
            return False
        return True

    def _send_latest(self) -> None:
        # Whatever is unsent gets an answer once it is read, and an answer brings us here again.
        self._behind = self._writer is not None and self._writer.transport.get_write_buffer_size() > 0
        if not self._behind:
            self._send(self._latest)

    def _send(self, frame: bytes) -> None:
        if self._writer is None or self._writer.is_closing():
            return
        if self._writer.transport.get_write_buffer_size() > _MAX_UNSENT:  # it does not read: it has to start again
            get_log().warning("router.stuck", pid=self.router_pid)
            self._writer.transport.abort()
            return
        self._writer.write(frame)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pid, uid = peer_of(writer)
        if uid != self._router_uid or self._writer is not None:
            get_log().warning("router.refused", pid=pid, uid=uid)
            writer.close()
            return
        self._writer, self.router_pid, self._acked = writer, pid, 0
        self._events.add("router.connected", f"pid {pid}")
        try:
            if self._latest:
                self._send_latest()
            frames = FrameReader()
            while data := await reader.read(_READ):
                for message in frames.feed(data):
                    self._hear(msgspec.convert(message, _Message))
                if self._behind:
                    self._send_latest()
                async with self._news:
                    self._news.notify_all()
        except (OSError, BedsitError, msgspec.ValidationError) as e:
            get_log().warning("router.misread", error=str(e))
        finally:
            self._writer = self.router_pid = self.router_version = None
            writer.close()
            self._events.add("router.lost", f"pid {pid}")
            async with self._news:
                self._news.notify_all()

    def _hear(self, message: _Message) -> None:
        match message:
            case _Ack(serial):
                self._acked = serial
            case _Drained(slot):
                self._feed(on.SlotDrained(slot))
            case _Lost(slot, ran):
                self._feed(on.SlotLost(slot, ran))
            case _Hung(slot, ran, after_s):
                self._feed(on.SlotHung(slot, ran, f"a call of its model has not ended after {after_s:.1f} s"))
            case _Overran(slot, ran, device, after_s):
                text = f"kept {device[:_MAX_NAME]} for {after_s:.2f} s while others waited, and did not yield"
                self._feed(on.SlotHung(slot, ran, text, "turn.overrun"))
            case _Wanted(tenant):
                self._feed(on.TenantWanted(tenant))
            case _Misbehaved(slot, count):
                # At powers of two: a worker cannot make us write at its own pace.
                if count > 0 and count & (count - 1) == 0:
                    self._events.add("slot.misbehaved", f"{count} malformed messages of its worker", slot=slot)
            case _Stats(tenants):
                self._stats = tenants
                self._stats_count += 1
            case _Activity(active):
                self._active = active
                self._active_count += 1
            case UsageReport():
                self.hear_usage(message)
                self._usage_count += 1
            case _Hello(version=version):
                self.router_version = version[:_MAX_VERSION]
                get_log().debug("router.said", message=str(message))


def peer_of(writer: asyncio.StreamWriter) -> tuple[int, int]:
    """(pid, uid) of who connected, as the kernel knows it (SO_PEERCRED, unix(7))."""
    sock: Any = writer.get_extra_info("socket")
    pid, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid
