"""Keeps GPUs cut as they were declared: makes what is missing by itself, and does what an operator has seen and wants.

Guarantees: destroys nothing unless an operator asked for exactly that; makes nothing by itself unless all that was
declared for the GPU comes about by it, so that no half of a declaration stands in the way of the other. A cut that
failed is tried again after a while that doubles, and told once. MIG's mode is never touched.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from bedsit.ipc.errors import error
from bedsit.supervisor.devices.model import Trouble
from bedsit.supervisor.devices.partitions.declared import Declaration, Found, find_gpus, pick
from bedsit.supervisor.devices.partitions.plan import GpuPlan, Line, make_plan
from bedsit.supervisor.devices.partitions.refusals import explain, make_token, refuse
from bedsit.supervisor.devices.partitions.there import Seats, find_occupants
from bedsit.supervisor.devices.watch import Devices, Rhythm, Uncut

#: What is told of the keeper's work: the kind of an event, and its text.
Tell = Callable[[Literal["device.partitioned", "device.unpartitioned"], str], None]
State = Literal["done", "failed", "not tried"]
_RHYTHM: Final = Rhythm(rest_s=15.0, rest_max_s=900.0)
_DOING: Final = {"create": "create", "finish": "finish", "destroy": "destroy"}
_DONE: Final = {"create": "created", "finish": "finished", "destroy": "destroyed"}


@dataclass(frozen=True)
class Outcome:
    """What became of one line of a plan."""

    uuid: str
    line: Line
    state: State
    trouble: Trouble | None = None


@dataclass(frozen=True)
class _Rest:
    """Until when a GPU is not tried again, and how often in a row that failed."""

    until: float
    times: int


class Partitions:
    """The declared partitions of *devices*. *seats* says who sits where; *tell* hears of what is done."""

    def __init__(
        self,
        devices: Devices,
        declared: Sequence[Declaration],
        tell: Tell,
        seats: Callable[[], Seats],
        *,
        creates_missing: bool = True,
        rhythm: Rhythm = _RHYTHM,
    ) -> None:
        self._devices = devices
        self._declared = declared
        self._tell = tell
        self._seats = seats
        self._creates_missing = creates_missing
        self._rhythm = rhythm
        self._told: dict[str, str] = {}
        self._rests: dict[str, _Rest] = {}
        self._turn = asyncio.Lock()

    async def run(self) -> None:
        """After each look at the devices make what is missing, until cancelled."""
        while self._declared:
            await self._devices.wait_round()
            async with self._turn:
                await self._restore_all()

    async def look(self, name: str | None) -> tuple[GpuPlan, ...]:
        """The plans for all declared GPUs, or the one called *name*, as they are now. Waits for the driver.

        Raises ``device.not_found``, ``request.invalid``.
        """
        await self._devices.look()
        return self._make_plans(name)

    async def apply(
        self, name: str | None, token: str, progress: Callable[[str], None]
    ) -> tuple[tuple[GpuPlan, ...], tuple[Outcome, ...]]:
        """Do what `look` said, with the *token* that it has then; gives the plans and what became of them.

        Raises ``device.moved`` where something else would be done now, ``device.busy`` where somebody is in the way,
        ``device.not_ready`` and ``config.invalid``; nothing was done then.
        """
        async with self._turn:
            plans = await self.look(name)
            refuse(plans)
            if make_token(plans) != token:
                raise error("device.moved", "it is not any more as it was shown", "look again and decide anew")
            outcomes: list[Outcome] = []
            for plan in plans:
                outcomes += await self._carry_out(plan, progress)
            self._rests.clear()
            await self._devices.look()
        return plans, tuple(outcomes)

    def _make_plans(self, name: str | None) -> tuple[GpuPlan, ...]:
        founds = tuple(find_gpus(self._declared, self._devices.box))
        return tuple(self._plan(each) for each in (founds if name is None else pick(founds, name)))

    def _plan(self, found: Found, *, destroys_nothing: bool = False) -> GpuPlan:
        key, gpu = found.declaration.key, found.gpu
        if gpu is None:
            return GpuPlan(key, None, (), found.trouble)
        seats = self._seats()
        return make_plan(
            key,
            gpu,
            found.declaration.parts,
            find_occupants(gpu, seats),
            seated=[place for uuid, place in seats if uuid == gpu.uuid],
            destroys_nothing=destroys_nothing,
        )

    async def _restore_all(self) -> None:
        now = asyncio.get_running_loop().time()
        box = self._devices.box
        for found in find_gpus(self._declared, box):
            key = found.declaration.key
            if key in self._rests and self._rests[key].until > now:
                continue
            if (found.gpu is None and not box.is_counted and box.trouble is None) or (
                found.gpu is not None and found.gpu.trouble
            ):
                continue  # it may come yet; what is wrong with a GPU is told by who looks at it
            plan = self._plan(found, destroys_nothing=True)
            problem = explain(plan, self._plan(found))
            if not problem and plan.changes and not self._creates_missing:
                problem = f"{plan.uuid}: not cut as declared, and create_missing is off: bedsit device partition apply"
            if problem:
                self._tell_once(key, problem)
                continue
            failed = [each.trouble for each in await self._carry_out(plan, lambda _: None) if each.trouble]
            if failed:
                times = self._rests[key].times if key in self._rests else 0
                self._rests[key] = _Rest(now + self._rhythm.rest(self._rhythm.rest_s, times), times + 1)
                self._tell_once(key, f"{plan.uuid}: not cut as declared: {failed[0].what}; {failed[0].mend}")
            else:
                self._rests.pop(key, None)
                self._tell_once(key, "")
            if plan.changes:
                await self._devices.look()

    async def _carry_out(self, plan: GpuPlan, progress: Callable[[str], None]) -> list[Outcome]:
        """The changes of one GPU in order; what comes after one that failed is not tried."""
        outcomes: list[Outcome] = []
        uuid, trouble = plan.uuid or "", None
        for line in plan.changes:
            if trouble is not None:
                outcomes.append(Outcome(uuid, line, "not tried"))
                continue
            progress(f"{_DOING[line.action]} {line.what} of {uuid}")
            try:
                await self._cut(uuid, line)
            except Uncut as e:
                trouble = e.trouble
                outcomes.append(Outcome(uuid, line, "failed", trouble))
            else:
                self._tell("device.partitioned", f"{uuid}: {_DONE[line.action]} {line.what}")
                outcomes.append(Outcome(uuid, line, "done"))
        return outcomes

    async def _cut(self, uuid: str, line: Line) -> None:
        what: dict[str, int] = {"profile": line.profile_id or 0}
        if line.action == "create" and line.placement is not None:
            await self._devices.cut("create", uuid, start=line.placement.start, size=line.placement.size, **what)
            return
        number = line.gpu_instance or 0
        if line.action == "finish":
            await self._devices.cut("finish", uuid, gpu_instance=number, **what)
            return
        # No pause between this look and the device's being marked: who took a seat since is seen, and nobody takes one.
        gpu = next(gpu for gpu in self._devices.box.gpus if gpu.uuid == uuid)
        inside = find_occupants(gpu, self._seats()).get(number)
        if inside:
            raise Uncut(Trouble(f"{', '.join(inside)} has taken it meanwhile", "see: bedsit device partition plan"))
        await self._devices.cut("destroy", uuid, gpu_instance=number, **what)

    def _tell_once(self, key: str, problem: str) -> None:
        if problem and self._told.get(key) != problem:
            self._tell("device.unpartitioned", problem)
        self._told[key] = problem
