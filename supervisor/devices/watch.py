"""Keeps the inventory true: asks the helper in rounds, hears the driver's events, starts a new helper where one failed.

Guarantees: one GPU that hangs costs the others one round at most. It is left alone for a while that doubles, and then
asked last. No failure of driver, library or helper ends the daemon.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from bedsit.ipc.errors import BedsitError
from bedsit.sandbox.budget import Budget
from bedsit.supervisor.devices import faults
from bedsit.supervisor.devices.barred import bar, explain_stuck
from bedsit.supervisor.devices.claims import FOREIGN, Claims
from bedsit.supervisor.devices.cores import find_cpus, find_usable
from bedsit.supervisor.devices.helper import Cut, Ended, Helper, Hung, Patience, Refused
from bedsit.supervisor.devices.inventory import Change, Inventory
from bedsit.supervisor.devices.model import Box, Gpu, Process, Trouble
from bedsit.supervisor.devices.nodes import read_cap_minors
from bedsit.supervisor.devices.reports import DriverReport, GpuReport, Happening, Refusal, read_report
from bedsit.supervisor.devices.shared import list_shared
from bedsit.supervisor.log import get_log

#: Tenants' programs cause Xids: what is told of one GPU is bounded, and the rest is counted.
_EVENTS_PER_S: Final = 1 / 10
_EVENTS_AT_ONCE: Final = 16


@dataclass(frozen=True)
class Rhythm:
    """Seconds between rounds, at least where events hurry them, and after a failure: doubled each time, to a bound."""

    round_s: float = 15.0
    least_s: float = 0.5
    rest_s: float = 1.0
    rest_max_s: float = 300.0

    def rest(self, first_s: float, times: int) -> float:
        """How long after the failure that follows so many others."""
        return float(min(self.rest_max_s, first_s * 2 ** min(times, 16)))


_RHYTHM: Final = Rhythm()
_PATIENCE: Final = Patience()
_PROC: Final = Path("/proc")


class _NoAnswer(Exception):
    """The helper is of no use any more. *lasts*: trying again soon does not help."""

    def __init__(self, trouble: Trouble, *, lasts: bool = False) -> None:
        super().__init__(trouble.what)
        self.trouble = trouble
        self.lasts = lasts


@dataclass(frozen=True)
class _Rest:
    """Until when a GPU that hung is not asked, and how often in a row it has."""

    until: float
    times: int


class Undone(Exception):
    """The helper did not do, or did not tell, what it was asked for."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(trouble.what)
        self.trouble = trouble


class Uncut(Undone):
    """A GPU was not cut as it was asked for."""


class Devices:
    """What this box computes with. *tell* hears of every change. *unit* is the socket of the helper's unit, if any.

    *shared* are the sets of cores that tenants take turns on. *looked* is called after each look, and each change.
    """

    def __init__(
        self,
        tell: Callable[[Change], None],
        rhythm: Rhythm = _RHYTHM,
        patience: Patience = _PATIENCE,
        proc: Path = _PROC,
        unit: Path | None = None,
        shared: Mapping[str, str] = MappingProxyType({}),
        looked: Callable[[], None] = lambda: None,
        claims: Claims | None = None,
    ) -> None:
        self._tell = tell
        self._told = looked
        self._shared = shared
        self._is_counted = False
        self._rhythm = rhythm
        self._patience = patience
        self._proc = proc
        self._unit = unit
        self._inventory = Inventory()
        self._helper: Helper | None = None
        self._listens: set[str] = set()
        self._rests: dict[int, _Rest] = {}
        self._gpus = 0
        self._budgets: dict[str, Budget] = {}
        self._untold = 0
        self._wake = asyncio.Event()
        self._looked = asyncio.Event()
        self._round = asyncio.Event()
        self._turn = asyncio.Lock()
        #: GPU instances, by GPU and number, that are being destroyed, and that were since the GPU was looked at.
        self._leaving: set[tuple[str, int]] = set()
        self._left: set[tuple[str, int]] = set()
        #: Slots that cannot be ended, and the device of each; and devices that another daemon hands out.
        self._stuck: dict[str, str] = {}
        self._claims = claims
        self._foreign: set[str] = set()
        #: Who computes on a GPU, by its UUID, where that was asked for since it was looked at.
        self._computing: dict[str, tuple[Process, ...]] = {}
        self._look_at_cores()

    @property
    def box(self) -> Box:
        """Everything, as it was seen last. Never waits."""
        box = replace(self._inventory.box(self._cpus), shared=self._turns, is_counted=self._is_counted)
        if self._computing:
            gpus = (replace(gpu, processes=self._computing.get(gpu.uuid, gpu.processes)) for gpu in box.gpus)
            box = replace(box, gpus=tuple(gpus))
        gone = self._leaving | self._left
        box = replace(box, gpus=tuple(_mark(gpu, gone) for gpu in box.gpus)) if gone else box
        troubles = {device: explain_stuck(slot) for slot, device in self._stuck.items()}
        troubles |= dict.fromkeys(self._foreign, FOREIGN)
        return bar(box, troubles) if troubles else box

    def _claim(self) -> None:
        """Take what is there, as far as nobody else has."""
        if self._claims is not None:
            box = self._inventory.box(self._cpus)
            names = {*(gpu.uuid for gpu in box.gpus), *(part.id for part in self._turns)}
            cores = {part.id: [f"core {core}" for core in part.cores] for part in self._turns}
            foreign = {name for name in names if not all(map(self._claims.take, cores.get(name, [name])))}
            for name in foreign - self._foreign:
                self._tell(Change("device.degraded", name, f"{FOREIGN.what}; {FOREIGN.mend}"))
            for name in self._foreign - foreign:
                self._tell(Change("device.recovered", name, "it is this bedsitd's to hand out"))
            self._foreign = foreign

    def stick(self, slot: str, device: str) -> None:
        """A slot on this device cannot be ended: nobody new is put there until `unstick`."""
        if slot in self._stuck:
            return
        self._stuck[slot] = device
        self._tell(Change("device.degraded", device, explain_stuck(slot).what))
        self._told()

    def unstick(self, slot: str) -> None:
        """Nothing runs in that slot any more."""
        device = self._stuck.pop(slot, None)
        if device is not None and device not in self._stuck.values():
            self._tell(Change("device.recovered", device, f"slot {slot} has ended"))
            self._told()

    async def wait_looked(self, timeout_s: float) -> bool:
        """Wait until the first round is over. False when that takes longer."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._looked.wait()
        return self._looked.is_set()

    async def wait_round(self) -> None:
        """Wait until the round that comes next is over, whatever was seen in it."""
        await self._round.wait()

    async def look(self) -> None:
        """Look at everything now. What cannot be read stays as it was seen last, with why. Waits for the driver."""
        with suppress(_NoAnswer):
            await self._look_around()

    async def cut(self, ask: Cut, uuid: str, **what: int) -> None:
        """Have an instance of a GPU made or destroyed (reports.py); what is seen is as it was until the next look.

        Raises Uncut; nothing is left half then, unless it says so. Waits for the driver. What is destroyed is of no use
        from this call on: before anything is waited for.
        """
        leaving: set[tuple[str, int]] = {(uuid, what["gpu_instance"])} if ask == "destroy" else set()
        self._leaving |= leaving
        try:
            await self.order(object, faults.explain_cut, ask=ask, uuid=uuid, **what)
            self._left |= leaving
        except Undone as e:
            raise Uncut(e.trouble) from None
        finally:
            self._leaving -= leaving

    async def list_processes(self, uuid: str) -> tuple[Process, ...]:
        """Who computes on a GPU now. Raises Undone. Waits for the driver."""
        found: tuple[Process, ...] = await self.order(
            tuple[Process, ...], faults.explain_memory, ask="processes", uuid=uuid
        )
        self._computing[uuid] = found
        return found

    async def order(self, kind: Any, explain: Callable[[Refusal], Trouble], **question: Any) -> Any:
        """The answer, as that *kind*, of a helper that is started if need be. Waits for its turn and for the driver.

        Raises Undone. Who waits may be cancelled: the helper is asked to the end, as its next answer is the next one's.
        """
        answer = await asyncio.shield(asyncio.create_task(self._give(kind, explain, question)))
        if isinstance(answer, Undone):
            raise answer
        return answer

    async def _give(self, kind: Any, explain: Callable[[Refusal], Trouble], question: Mapping[str, Any]) -> Any:
        try:
            async with self._turn:
                await self._ask(DriverReport, ask="driver")  # a helper that is new opens NVML with it
                return await self._ask(kind, **question)
        except Refused as e:
            return Undone(explain(e.refusal))
        except _NoAnswer as e:
            return Undone(e.trouble)

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        failures = 0
        while True:
            self._wake.clear()
            try:
                await self._look_around()
                failures, rest_s = 0, self._rhythm.round_s
            except _NoAnswer as e:
                rest_s = self._rhythm.rest_max_s if e.lasts else self._rhythm.rest(self._rhythm.rest_s, failures)
                failures += 1
            if self._foreign:  # somebody else may let go of it
                rest_s = min(rest_s, self._rhythm.round_s)
            self._looked.set()
            self._round.set()
            self._round = asyncio.Event()
            self._told()
            await asyncio.sleep(min(self._rhythm.least_s, rest_s))  # an event seldom comes alone
            with suppress(TimeoutError):
                async with asyncio.timeout(rest_s):
                    await self._wake.wait()

    async def close(self) -> None:
        """End the helper, and leave the devices to others."""
        if self._helper is not None:
            await self._helper.close()
        if self._claims is not None:
            self._claims.close()

    async def _look_around(self) -> None:
        """One round. Nobody else has the helper meanwhile. Raises _NoAnswer where it broke off."""
        async with self._turn:
            self._look_at_cores()
            self._inventory.cap_minors = read_cap_minors(self._proc)
            try:
                await self._look_at_all()
            finally:
                self._claim()

    def _look_at_cores(self) -> None:
        self._turns = tuple(list_shared(self._shared, find_usable()))
        self._cpus = find_cpus(apart={core for part in self._turns for core in part.cores})

    async def _look_at_all(self) -> None:
        driver = await self._open()
        if driver.gpus != self._gpus:  # indexes are others' now
            self._gpus = driver.gpus
            self._rests.clear()
        now = asyncio.get_running_loop().time()
        rests = self._rests
        seen = set()
        for index in sorted(range(driver.gpus), key=lambda index: (index in rests, index)):
            if index not in rests or rests[index].until <= now:
                seen |= await self._look_at(index)
        self._is_counted = True
        self._apply(self._inventory.count(driver.gpus, seen))
        if seen - self._listens:
            await self._listen(seen)

    async def _open(self) -> DriverReport:
        try:
            driver: DriverReport = await self._ask(DriverReport, ask="driver")
        except Refused as e:
            trouble = faults.explain_box(e.refusal)
            await self._fail(trouble)
            raise _NoAnswer(trouble, lasts=e.refusal.code in faults.LASTING) from None
        except _NoAnswer as e:
            await self._fail(e.trouble)
            raise
        self._inventory.open(driver)
        return driver

    async def _look_at(self, index: int) -> set[str]:
        """One GPU; its UUID, if it could be read. One that takes the helper with it is left alone for a while."""
        try:
            report: GpuReport = await self._ask(GpuReport, ask="gpu", index=index)
        except Refused as e:
            self._apply(self._inventory.miss(index, faults.explain_gpu(e.refusal)))
            return set()
        except _NoAnswer as e:
            self._apply(self._inventory.miss(index, e.trouble))
            times = self._rests[index].times if index in self._rests else 0
            until = asyncio.get_running_loop().time() + self._rhythm.rest(self._rhythm.round_s, times)
            self._rests[index] = _Rest(until, times + 1)
            raise
        self._rests.pop(index, None)
        self._left = {each for each in self._left if each[0] != report.uuid}
        self._computing.pop(report.uuid, None)
        self._apply(self._inventory.see(index, report))
        return {report.uuid}

    async def _listen(self, seen: set[str]) -> None:
        try:
            heard = await self._ask(list[str], ask="listen")
        except Refused as e:
            get_log().warning("devices.deaf", call=e.refusal.call, why=e.refusal.text)
            heard = []
        except _NoAnswer as e:
            get_log().warning("devices.deaf", why=e.trouble.what)
            raise
        self._listens = seen  # asked for once, whatever came of it
        for uuid in seen.difference(heard):
            get_log().info("devices.deaf", device=uuid, why="this GPU tells no events")

    async def _ask(self, kind: Any, **question: Any) -> Any:
        """The answer. Raises Refused, and _NoAnswer where the helper is gone or had to be ended."""
        try:
            if self._helper is not None and self._helper.is_stuck:
                raise _NoAnswer(faults.STUCK)
            if self._helper is None or self._helper.is_over:
                self._helper = Helper(self._hear, self._patience, self._unit)
                self._listens = set()
            return read_report(await self._helper.ask(**question), kind)
        except Hung as e:
            trouble = faults.explain_hang(e.call, e.after_s)
        except Ended as e:
            trouble = faults.explain_end(e.call, e.cause)
        except OSError as e:
            trouble = faults.explain_start(e, is_unit=self._unit is not None)
        except BedsitError as e:
            trouble = faults.explain_end("its answer", str(e))
        await self._end_helper()
        raise _NoAnswer(trouble)

    async def _fail(self, trouble: Trouble) -> None:
        """There is no NVML. Nothing has to run then until it is tried again."""
        if self.box.trouble != trouble:
            get_log().info("devices.none", what=trouble.what, hint=trouble.mend)
        self._apply(self._inventory.fail(trouble))
        await self._end_helper()

    async def _end_helper(self) -> None:
        """One that cannot be killed stays ours: there is never a second one beside it."""
        if self._helper is not None and not self._helper.is_stuck:
            await self._helper.close()
            if self._helper.is_over:
                self._helper = None

    def _hear(self, happening: Happening) -> None:
        if happening.failed is not None:
            get_log().warning("devices.deaf", call=happening.failed.call, why=happening.failed.text)
            self._wake.set()
            return
        self._untold += happening.dropped
        changes = self._inventory.hear(happening)
        self._apply(changes)
        if not changes or changes[-1].kind == "device.degraded":  # a MIG device was cut, or something broke
            self._wake.set()

    def _apply(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.kind not in ("device.xid", "device.ecc"):
                self._tell(change)
            elif self._budgets.setdefault(change.device, Budget(_EVENTS_PER_S, _EVENTS_AT_ONCE)).take(1):
                untold, self._untold = self._untold, 0
                text = f"{change.text} ({untold} more were not told)" if untold else change.text
                self._tell(replace(change, text=text))
            else:
                self._untold += 1
        if changes:
            self._told()


def _mark(gpu: Gpu, gone: set[tuple[str, int]]) -> Gpu:
    """The GPU without use of what is about to go."""
    slices = tuple(
        replace(part, trouble=part.trouble or faults.LEAVING) if (gpu.uuid, part.gpu_instance) in gone else part
        for part in gpu.slices
    )
    return replace(gpu, slices=slices)
