"""Holds slots to their part of a GPU's memory from their birth on, with whatever the box has for that.

Where the driver limits memory by groups, the limit is on the slot's group before a process is in it: so it is there
before CUDA is asked for anything, and before any code of a tenant's is. What comes of it is written on the group itself
(xattr(7)), which so tells any later daemon what has to be taken back before it is removed.

A driver that refuses, hangs or does not hold what it says costs nobody a slot: it is watched then, and that is told.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from bedsit.ipc.errors import BedsitError
from bedsit.sandbox.cgroup import CgroupBackend
from bedsit.supervisor.births import MEMORY_VARIABLE, Birth
from bedsit.supervisor.devices import faults
from bedsit.supervisor.devices.model import Gpu, Trouble
from bedsit.supervisor.devices.watch import Devices, Undone
from bedsit.supervisor.log import get_log
from bedsit.supervisor.memory.kinds import Held
from bedsit.supervisor.placement.seating import CONTEXT_BYTES, LEAST_BYTES

#: A driver that did not do it is not asked again for a while: it may take its time each time.
_REST_S: Final = 300.0
#: How long the removal of a group waits for its limit to be taken back.
_LIFT_S: Final = 5.0
#: Contexts are as large as this at most; a larger number is about something else.
_MOST_CONTEXT: Final = 4 << 30


@dataclass
class Holder:
    """Limits through *devices*. *tell* hears of what the driver did not do: a slot, and why."""

    devices: Devices
    backend: CgroupBackend
    tell: Callable[[str, str], None]
    #: What a context takes of each GPU, by UUID, as far as one was measured here.
    contexts: dict[str, int] = field(default_factory=dict)
    _rests: dict[str, float] = field(default_factory=dict)

    def describe(self, birth: Birth) -> dict[str, str]:
        """What the worker of such a slot has to know: what torch may take beside a context, and how it should."""
        if not birth.memory_bytes:
            return {}
        own = birth.memory_bytes - self.contexts.get(birth.device, CONTEXT_BYTES)
        # The older name of PYTORCH_ALLOC_CONF: every torch since 2.0 reads it.
        return {MEMORY_VARIABLE: str(max(own, LEAST_BYTES)), "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}

    async def hold(self, slot: str, birth: Birth) -> Held:
        """Limit what is about to be in the slot's group. Waits for the driver."""
        if not birth.device:
            return ""
        if not birth.memory_bytes:
            return "hardware"
        gpu = self._find(birth.device)
        now = asyncio.get_running_loop().time()
        if gpu is None or "memory_limits" not in gpu.capabilities or self._rests.get(gpu.uuid, 0.0) > now:
            return "soft"
        try:
            self.backend.mark(slot, gpu.uuid)
            await self._order("limit", gpu.uuid, slot, limit_bytes=birth.memory_bytes)
        except (Undone, BedsitError) as e:
            self._rests[gpu.uuid] = now + _REST_S
            trouble = e.trouble if isinstance(e, Undone) else Trouble(e.message, e.hint)
            self.tell(slot, f"{gpu.uuid}: {trouble.what}; {trouble.mend}. For now memory there is watched only")
            return "soft"
        return "driver"

    async def let_go(self, slot: str) -> None:
        """Take back the limit of a group that is about to be removed, if it has one. Waits a little for the driver."""
        uuid = self.backend.read_mark(slot)
        if not uuid:
            return
        lifting = asyncio.create_task(self._lift(uuid, slot))
        await asyncio.wait([lifting], timeout=_LIFT_S)
        if not lifting.done():
            get_log().warning("memory.reserved", slot=slot, device=uuid, why="the driver does not answer")

    async def meet(self, slot: str, birth: Birth, lacks: str) -> None:
        """A blank slot has its context, and *lacks* that; what it takes is taken for what every context there does."""
        if lacks:
            self.tell(slot, f"{birth.device}: {lacks}")
        gpu = self._find(birth.device)
        if gpu is None or gpu.uuid in self.contexts:
            return
        try:
            found = await self.devices.list_processes(gpu.uuid)
        except Undone:
            return
        pids = self.backend.procs(slot)
        used = sum(each.memory_bytes or 0 for each in found if each.pid in pids)
        if 0 < used <= _MOST_CONTEXT:
            self.contexts[gpu.uuid] = used

    def _find(self, uuid: str) -> Gpu | None:
        return next((gpu for gpu in self.devices.box.gpus if gpu.uuid == uuid), None)

    async def _order(self, ask: str, uuid: str, slot: str, **more: int) -> None:
        group = str(self.backend.group(slot))
        await self.devices.order(int, faults.explain_memory, ask=ask, uuid=uuid, group=group, **more)

    async def _lift(self, uuid: str, slot: str) -> None:
        try:
            await self._order("lift", uuid, slot)
        except (Undone, BedsitError) as e:
            get_log().warning("memory.reserved", slot=slot, device=uuid, why=str(e))
