"""Finding the slots of an earlier daemon again. Runs once, at start; what it cannot prove, it ends.

A stop, a crash, an upgrade and a `kill -9` all come here. Every case that it can meet:

    | record                 | slot                                | what happens                                  |
    |------------------------|-------------------------------------|-----------------------------------------------|
    | readable               | same init (start time), same nonce  | adopted in the state that record and init say |
    | readable               | its group is empty or gone          | cleared; the tenant gets a new slot           |
    | readable               | its init is another, or mute        | ended                                         |
    | readable               | its worker ended, its init waits    | ended; the tenant gets a new slot             |
    | "assigning"            | its init never got the assignment   | ended: half-assigned                          |
    | "assigning", "loading" | its init has the assignment         | adopted; its worker's reports are replayed    |
    | of a tenant            | the tenant was deleted meanwhile    | ended                                         |
    | blank                  | runs another bedsit version         | ended: the pool holds this version only       |
    | of a tenant            | speaks another version of the wire  | drained: no router of this version knows it   |
    | of uids in use         | whatever                            | ended: another range, or a forgery            |
    | torn                   | whatever                            | ended                                         |
    | of a foreign version   | whatever                            | ended                                         |
    | none                   | a group of that name                | ended: half-built                             |
    | none                   | only a folder or a socket           | removed                                       |
    | of a foreign instance  | the run folder served another state | all ended, their groups removed               |

Half-built slots end themselves when the daemon's build pipe closes; here only their groups are left to be removed.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import bedsit
from bedsit.ipc import wire
from bedsit.ipc.errors import BedsitError
from bedsit.sandbox.cgroup import CgroupBackend, detect
from bedsit.supervisor import stimuli as on
from bedsit.supervisor.blank import limit_blank
from bedsit.supervisor.causes import Cause, classify
from bedsit.supervisor.cores import Cores
from bedsit.supervisor.events import Events
from bedsit.supervisor.folders import Folders
from bedsit.supervisor.generations import Generations
from bedsit.supervisor.log import get_log
from bedsit.supervisor.records import Places, Record, Records, Unreadable, load_places, save_places
from bedsit.supervisor.registry import Registry
from bedsit.supervisor.slots import Slots, is_degraded
from bedsit.supervisor.uids import UidPairs
from bedsit.supervisor.watch import wait_empty

_EMPTY_S: Final = 10.0
#: The lifecycle hears of slots in this order: who serves goes before who may replace it.
_ORDER: Final = ("serving", "loading", "draining", "blank")


class Stranger(Exception):
    """A slot that cannot be adopted, and why; *cause* when it had ended already."""

    def __init__(self, why: str, cause: Cause | None = None) -> None:
        super().__init__(why)
        self.cause = cause


@dataclass(frozen=True)
class Recovery:
    """What recovery works with."""

    folders: Folders
    backend: CgroupBackend
    registry: Registry
    records: Records
    events: Events
    uids: UidPairs
    slots: Slots
    cores: Cores

    async def adopt_all(self, feed: Callable[[on.Stimulus], None]) -> None:
        """Adopt what can be proven, end everything else, tell the lifecycle through *feed*."""
        names = self.records.list()
        found = [slot for slot in await asyncio.gather(*map(self._adopt_or_end, names)) if slot is not None]
        strangers = {*self.backend.list(), *self._leftovers()} - {slot.slot for slot in found}
        await asyncio.gather(*map(self._end_stranger, sorted(strangers)))
        for slot in sorted(found, key=lambda slot: _ORDER.index(slot.state)):
            feed(slot)
            self.slots.release(slot.slot)

    async def _adopt_or_end(self, slot: str) -> on.SlotAdopted | None:
        record = None
        claimed = False
        try:
            record = self._load(slot)
            claimed = self._claim(record)
            return await self._adopt(record)
        except Stranger as why:
            self._mourn(slot, record, str(why), why.cause)
        await self.slots.end_stranger(slot, record.init_uid if record and claimed else None)
        return None

    def _load(self, slot: str) -> Record:
        try:
            return self.records.load(slot)
        except Unreadable as e:
            raise Stranger(str(e)) from None

    def _claim(self, record: Record) -> bool:
        if not self.uids.claim(record.init_uid):
            raise Stranger(f"its uids from {record.init_uid} are in use or not of this daemon's range")
        return True

    async def _adopt(self, record: Record) -> on.SlotAdopted:
        slot = record.slot
        if not self.backend.populated(slot):
            raise Stranger("it ended while no daemon ran", self._classify(record, None))
        if record.init_pid not in self.backend.procs(slot):
            raise Stranger(f"process {record.init_pid} is not in its group")
        if record.tenant is None and record.bedsit != bedsit.__version__:
            raise Stranger(f"it is blank and of bedsit {record.bedsit}")
        row = None
        if record.tenant is not None:
            row = next((row for row in self.registry.tenants() if row.name == record.tenant), None)
            if row is None:
                raise Stranger(f"its tenant {record.tenant!r} was deleted")
        limits = self.cores.limits_of(row) if row else limit_blank(record.birth)
        self.backend.renew(slot, record.nodes)
        try:
            says = await self.slots.adopt(record, limits)
        except BedsitError as e:
            ended = e.code == "worker.crashed"
            raise Stranger(str(e), self._classify(record, e.detail.get("status")) if ended else None) from None
        except OSError as e:
            raise Stranger(str(e)) from None
        try:
            self.backend.set_limits(slot, limits)  # the wish may have been written down just before the daemon ended
        except BedsitError as e:
            get_log().warning("limits.kept", slot=slot, error=str(e))
        return on.SlotAdopted(
            slot=slot,
            state=_judge_state(record, says),
            tenant=record.tenant,
            models=record.models,
            degraded=is_degraded(self.slots.inspect(slot)),
            generation=record.generation,
            birth=record.birth,
            seat=record.seat,
        )

    async def _end_stranger(self, slot: str) -> None:
        self._mourn(slot, None, "no record names it")
        await self.slots.end_stranger(slot, None)

    def _classify(self, record: Record, status: int | None) -> Cause:
        """Why a slot ended that nobody watched: its init may know how, its group whether the kernel ended it."""
        row = next((row for row in self.registry.tenants() if row.name == record.tenant), None)
        limits = self.cores.limits_of(row) if row else limit_blank(record.birth)
        try:
            counts = self.backend.oom_kills(record.slot), self.backend.pids_denied(record.slot)
        except (OSError, BedsitError):
            counts = 0, 0
        return classify(status, *counts, limits.memory_bytes, limits.pids_max)

    def _mourn(self, slot: str, record: Record | None, why: str, cause: Cause | None = None) -> None:
        tenant = record.tenant if record else None
        cause = cause or Cause("killed", why)
        self.events.add("slot.destroyed", f"not adopted: {why}", tenant, slot, cause.kind if record else None)
        if tenant is None:
            return
        try:
            self.registry.count_restart(self.registry.tenant(tenant).number, cause)
        except BedsitError:  # deleted, or the disk is full: a tally is not worth a failure
            return

    def _leftovers(self) -> set[str]:
        """Names of slots that left a folder or a socket."""
        folders = {path.name for path in self.folders.slots.iterdir()}
        return folders | {path.stem for path in self.folders.inits.glob("*.sock")}


def _judge_state(
    record: Record, says: Literal["blank", "assigned"]
) -> Literal["blank", "loading", "serving", "draining"]:
    """What the slot is, out of what was written down and what its init says. Raises Stranger when they disagree.

    A router of the version before may still be there, with requests that the slot has.
    """
    if (record.phase == "blank") != (says == "blank"):
        half = "half-assigned" if record.phase == "assigning" else f"its record says {record.phase}"
        raise Stranger(f"{half}, its init says {says}")
    if record.wire != wire.VERSION and record.tenant is not None:
        return "draining"
    return "loading" if record.phase == "assigning" else record.phase


async def find_backend(folders: Folders, instance: str, *, units: bool) -> CgroupBackend:
    """The cgroups of this instance, where an earlier daemon made them if they are still there.

    A run folder that served another state folder is cleared first: nobody else would. With *units* each generation
    brings the group of its slots; those that an earlier daemon wrote down are known either way.
    """
    path = folders.run / "places.json"
    known = load_places(path)
    groups = Generations(folders.zygotes).groups().values()
    if known is not None and known.instance != instance:
        await _clear_foreign(folders, known, groups)
        known = None
    try:
        backend = detect(instance, known.places if known else None, units=units)
    except BedsitError:
        if known is None:
            raise
        backend = detect(instance, units=units)  # the group above ours was removed: nothing can be left below it
    for group in groups:
        backend.know(group)
    save_places(path, Places(instance, backend.places()))
    return backend


async def _clear_foreign(folders: Folders, known: Places, groups: Iterable[Path]) -> None:
    try:
        backend = detect(known.instance, known.places)
        for group in groups:
            backend.know(group)
        for slot in backend.list():
            backend.kill(slot)
            await wait_empty(backend, slot, _EMPTY_S)
            backend.remove(slot)
        backend.remove_root()
    except BedsitError as e:
        get_log().warning("foreign.left", instance=known.instance, error=str(e))
    for record in folders.records.glob("*.json"):
        record.unlink()
