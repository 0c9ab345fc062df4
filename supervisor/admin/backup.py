"""backup: what the operator wants, and every artifact that it takes, as they are at one moment.

The items are ``{"backup": about}`` and then, for each file, ``{"file": {"name", "size"}}`` and its bytes in pieces,
``{"data": ...}``: first ``bedsit.db``, then ``artifacts/DIGEST``. What happened is in it; logs and slots are not.
"""

import asyncio
import os
from typing import Any, Final

import bedsit
from bedsit.ipc.admin import CHUNK_BYTES
from bedsit.ipc.errors import error
from bedsit.supervisor.admin import schema
from bedsit.supervisor.admin.call import Call
from bedsit.supervisor.desk import Desk, now_text
from bedsit.supervisor.registry import copy_database, read_digests

FORMAT: Final = 1
#: A caller that takes nothing for so long is not waited for: artifacts are kept for it.
_STALLED_S: Final = 60.0


async def backup(desk: Desk, _request: schema.Backup, call: Call) -> dict[str, Any]:
    """Send it all. Deployments and deletions go on meanwhile; artifacts that are deleted go when it is over.

    Raises ``disk.full``, and ``deadline.exceeded`` for a caller that takes nothing.
    """
    with desk.keeping_artifacts():
        call.progress("copy")
        copy = await asyncio.to_thread(copy_database, desk.folders.database)
        try:
            digests = sorted(read_digests(copy))
            about = {"format": FORMAT, "bedsit": bedsit.__version__, "instance": desk.registry.instance}
            await _send(call, {"backup": about | {"created_at": now_text()}})
            sent = await _send_file(call, "bedsit.db", os.open(copy, os.O_RDONLY | os.O_CLOEXEC))
        finally:
            copy.unlink()
        for digest in digests:
            sent += await _send_file(call, f"artifacts/{digest}", desk.artifacts.open(digest))
    desk.events.add("backup.taken", f"the database and {len(digests)} artifacts, {sent} bytes")
    return {"files": 1 + len(digests), "bytes": sent}


async def _send_file(call: Call, name: str, fd: int) -> int:
    with os.fdopen(fd, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        await _send(call, {"file": {"name": name, "size": size}})
        left = size
        while left:
            piece = file.read(min(CHUNK_BYTES, left))
            if not piece:
                raise error("internal", f"{name} was cut short while it was read", "see the daemon's log")
            left -= len(piece)
            await _send(call, {"data": piece})
    return size


async def _send(call: Call, item: dict[str, Any]) -> None:
    if call.is_over:
        raise error("request.cancelled", "the caller left")
    try:
        await asyncio.wait_for(call.item(item), _STALLED_S)
    except TimeoutError:
        raise error("deadline.exceeded", f"the caller took nothing for {_STALLED_S:g} s") from None
