"""The admin socket: who may speak, one request at a time per connection, every failure a typed answer."""

import asyncio
import os
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

from bedsit.ipc.errors import BedsitError, error
from bedsit.ipc.seqpacket import refuse_descriptors
from bedsit.supervisor.admin import (
    backup,
    box,
    devices,
    explain,
    keys,
    models,
    partitions,
    schema,
    streams,
    tenants,
    usage,
)
from bedsit.supervisor.admin.call import Call
from bedsit.supervisor.control import peer_of
from bedsit.supervisor.desk import Desk
from bedsit.supervisor.log import get_log

Handler = Callable[[Desk, Any, Call], Awaitable[Any]]

_HANDLERS: Final[Mapping[type, Handler]] = {
    schema.Ping: box.ping,
    schema.Status: box.status,
    schema.Ps: box.ps,
    schema.Down: box.down,
    schema.TenantCreate: tenants.create,
    schema.TenantList: tenants.list_all,
    schema.TenantShow: tenants.show,
    schema.TenantSet: tenants.set_limits,
    schema.TenantExplain: explain.explain,
    schema.TenantStop: tenants.stop,
    schema.TenantStart: tenants.start,
    schema.TenantRestart: tenants.restart,
    schema.TenantDrain: tenants.drain,
    schema.TenantPark: tenants.park,
    schema.TenantDelete: tenants.delete,
    schema.KeyCreate: keys.create,
    schema.KeyList: keys.list_all,
    schema.KeyRevoke: keys.revoke,
    schema.ModelDeploy: models.deploy,
    schema.ModelList: models.list_all,
    schema.ModelShow: models.show,
    schema.ModelSet: models.set_admission,
    schema.ModelRelease: models.release,
    schema.ModelDelete: models.delete,
    schema.DeviceList: devices.list_all,
    schema.UsageList: usage.list_all,
    schema.DeviceShow: devices.show,
    schema.PartitionPlan: partitions.look,
    schema.PartitionApply: partitions.apply,
    schema.EventsAsked: streams.events,
    schema.LogsAsked: streams.logs,
    schema.Backup: backup.backup,
}
_SO_PEERGROUPS: Final = 59  # socket(7), Linux 4.13; not in Python's socket module
_MAX_GROUPS: Final = 1024
_LIMIT: Final = 4 << 20
#: From 3.13 on asyncio removes the file when it closes the listener, also of one that systemd holds.
_KEEP: Final[Mapping[str, Any]] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}


class AdminServer:
    """The listener and its connections."""

    def __init__(self, desk: Desk, admin_gid: int, held: socket.socket | None) -> None:
        self._desk = desk
        self._admin_gid = admin_gid
        self._held = held
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Listen. What systemd does not hold is bound under another name first: whoever sees the socket can use it."""
        path = self._desk.folders.admin_socket
        place = path if self._held is not None else path.with_name(".admin.new")
        listener = self._held if self._held is not None else _bind(place)
        self._admit(listener, place)
        # It listens here in any case: whose listener it is, as clients are told, is who has called listen(2) last.
        self._server = await asyncio.start_unix_server(self._accept, sock=listener, limit=_LIMIT, **_KEEP)
        if self._held is None:
            place.replace(path)

    async def close(self) -> None:
        """Listen no more; connections end where they are."""
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        if self._held is None:
            self._desk.folders.admin_socket.unlink(missing_ok=True)

    def _admit(self, listener: socket.socket, place: Path) -> None:
        refuse_descriptors(listener)
        os.chown(place, 0, self._admin_gid)
        place.chmod(0o660)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)
        call = Call(reader, writer)
        try:
            if not self._may(writer):
                raise error("permission.denied", "the admin API is for root and the admin group")
            while await self._serve_one(call):
                pass
        except BedsitError as e:
            await call.fail(e)
        except asyncio.CancelledError:
            pass  # the daemon leaves; the caller sees the end of the stream
        finally:
            writer.close()

    async def _serve_one(self, call: Call) -> bool:
        """Answer one request. False when the caller is gone. Raises when the stream is of no further use."""
        message = await call.receive()
        if message is None:
            return False
        try:
            request = schema.read_request(message)
            result = await _HANDLERS[type(request)](self._desk, request, call)
        except BedsitError as e:
            if e.code == "wire.malformed":
                raise
            await call.fail(e)
            return True
        except Exception as e:  # noqa: BLE001  a bug: told without its details, which are ours
            get_log().exception("request.failed", request=type(message).__name__)
            await call.fail(
                error("internal", f"the daemon failed: {type(e).__name__}", "see its log; please report it")
            )
            return True
        await call.send({"ok": True, "result": result})
        call.finish()
        return True

    def _may(self, writer: asyncio.StreamWriter) -> bool:
        _, uid = peer_of(writer)
        if uid == 0:
            return True
        return self._admin_gid != 0 and self._admin_gid in _groups_of(writer)


def _bind(place: Path) -> socket.socket:
    place.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    listener.bind(str(place))
    return listener


def _groups_of(writer: asyncio.StreamWriter) -> set[int]:
    """All groups of who connected, as they were then."""
    sock: Any = writer.get_extra_info("socket")
    data = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _MAX_GROUPS)
    _, _, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return {gid, *struct.unpack(f"{len(data) // 4}I", data)}
