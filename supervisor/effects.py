"""Where instructions become system calls, and nowhere else. Each is carried out in order; none waits."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import assert_never

from bedsit.ipc.errors import BedsitError, error
from bedsit.ipc.slot import Assignment, ModelToLoad
from bedsit.supervisor import instructions as do
from bedsit.supervisor import stimuli as on
from bedsit.supervisor.artifacts import Artifacts
from bedsit.supervisor.cores import Cores
from bedsit.supervisor.events import Events
from bedsit.supervisor.log import get_log
from bedsit.supervisor.needs import may_doze
from bedsit.supervisor.operations import Operations
from bedsit.supervisor.publisher import Publisher
from bedsit.supervisor.registry import Registry, TenantRow
from bedsit.supervisor.slots import Slots
from bedsit.supervisor.timers import Timers
from bedsit.supervisor.zygotes import Zygotes


@dataclass(frozen=True)
class Draft:
    """A model version that is being deployed and is not in the registry yet."""

    name: str
    digest: str
    size: int


@dataclass
class Effects:
    """Carries out instructions. *feed_next* puts a stimulus before all others that wait: a commit's outcome."""

    registry: Registry
    events: Events
    artifacts: Artifacts
    slots: Slots
    zygotes: Zygotes
    operations: Operations
    publisher: Publisher
    timers: Timers
    cores: Cores
    feed: Callable[[on.Stimulus], None]
    feed_next: Callable[[on.Stimulus], None]
    finish: Callable[[], None]
    #: Looks for tenants that may be parked; ends in RoomFound, if there are any.
    find_room: Callable[[], None]
    wish_of: Callable[[TenantRow], on.TenantSet]
    #: After how many idle seconds models leave a GPU that others wait for; 0: never.
    doze_s: float
    #: By tenant, model number and version.
    drafts: dict[tuple[str, int, int], Draft] = field(default_factory=dict)

    def carry_out(self, instruction: do.Instruction) -> None:
        """Do it, or start doing it."""
        match instruction:
            case do.StartZygote():
                self.zygotes.start()
            case do.RetireZygote(generation):
                self.zygotes.retire(generation)
            case do.BuildSlot(slot, birth):
                self.slots.build(slot, birth)
            case do.AssignSlot():
                self._assign(instruction)
            case do.Record(slot, state):
                self.slots.save_state(slot, state)
            case do.DestroySlot(slot):
                self.slots.destroy(slot)
            case do.Commit():
                self._commit(instruction)
            case do.Answer(operation, why):
                self.operations.answer(operation, why)
            case do.Publish():
                self.publish()
            case do.SetTimer(timer, delay_s):
                self.timers.set(timer, delay_s)
            case do.StopTimer(timer):
                self.timers.stop(timer)
            case do.Tell(kind, text, tenant, slot, cause):
                self.events.add(kind, text, tenant, slot, cause.kind if cause else None)
            case do.CountRestart():
                self._count(instruction)
            case do.Quarantine():
                self._quarantine(instruction)
            case do.FindRoom():
                self.find_room()
            case do.Finish():
                self.finish()
            case _:
                assert_never(instruction)

    def publish(self) -> None:
        """Tell the router what is, and weigh the slots that there are against each other."""
        self.publisher.publish()
        self.cores.share()

    def _assign(self, order: do.AssignSlot) -> None:
        try:
            row = self.registry.tenant(order.tenant)
            drafts = [self._find(row, *model) for model in order.models]
        except BedsitError as e:  # deleted between two stimuli: the slot has to go
            self.feed(on.LoadFailed(order.slot, e))
            return
        models = [
            ModelToLoad(number, draft.name, version, draft.size)
            for (number, version), draft in zip(order.models, drafts, strict=True)
        ]
        threads = max(1, min(int(row.cpus), os.cpu_count() or 1))
        doze_s = self.doze_s if may_doze(row.seat, row.service_class) else 0.0
        assignment = Assignment(row.name, threads, tuple(models), doze_s)
        artifacts = [partial(self.artifacts.open, draft.digest) for draft in drafts]
        self.events.add("slot.assigned", f"{len(models)} model versions", row.name, order.slot)
        self.slots.assign(order.slot, assignment, self.cores.limits_of(row), artifacts, row.seat)

    def _find(self, row: TenantRow, number: int, version: int) -> Draft:
        draft = self.drafts.get((row.name, number, version))
        if draft is not None:
            return draft
        for model in self.registry.models(row.number):
            for known in model.versions:
                if (model.number, known.version) == (number, version):
                    return Draft(model.name, known.digest, known.size)
        raise error("model.not_found", f"model {number} version {version} of tenant {row.name!r} is not registered")

    def _commit(self, order: do.Commit) -> None:
        live = self.slots.live.get(order.slot or "")
        manifests = {live.record.models[index]: text for index, text in live.manifests.items()} if live else {}
        try:
            self.operations.commit(order.operation, manifests)
        except BedsitError as e:
            self.feed_next(on.RollRefused(order.operation, e))
        else:
            self.feed_next(on.RollCommitted(order.operation))

    def _quarantine(self, order: do.Quarantine) -> None:
        number, version = order.place
        try:
            row = self.registry.tenant(order.tenant)
            (model,) = [model for model in self.registry.models(row.number) if model.number == number]
            fallback = self.registry.quarantine(row.number, number, version, self.events.now())
        except (BedsitError, ValueError) as e:  # deleted meanwhile, or it cannot be written down: it goes on crashing
            get_log().warning("quarantine.lost", tenant=order.tenant, error=str(e))
            return
        if fallback is not None:
            text = f"{model.name} version {version} {order.text}; version {fallback} answers"
            self.events.add("model.quarantined", text, order.tenant)
            self.feed(self.wish_of(row))

    def _count(self, order: do.CountRestart) -> None:
        try:
            self.registry.count_restart(self.registry.tenant(order.tenant).number, order.cause)
        except BedsitError as e:  # a tally is not worth a failure
            get_log().warning("tally.lost", tenant=order.tenant, error=str(e))
