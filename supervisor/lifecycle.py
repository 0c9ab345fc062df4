"""The house: which slot belongs to whom, and what has to be done about what happened. Pure: no clock, no I/O.

``handle`` takes one stimulus and gives the instructions that follow from it; the shell (daemon.py) carries them out
(effects.py) and reports back with further stimuli.

Guarantees, for any order of stimuli (held by tests/supervisor/test_lifecycle_properties.py):
  - a slot serves one tenant, once; two tenants never share one;
  - a tenant has no more slots that take new requests than its policy says, but for one while it is replaced: that is
    there before the old one goes, and a failed roll leaves the old ones as they were;
  - the pool is refilled, a dead slot is replaced as its tenant's policy says, both with back-off; nothing is built
    after ShutDown;
  - nothing starts on a seat whose device is degraded, gone, or has not been looked at yet;
  - who waits in a full box, or for memory, gets the place of a tenant that may be parked, and nobody is parked who has
    just come;
  - when a zygote has forked enough, the next one replaces it and its blank slots, and the pool stays as full as it was;
  - every operation is answered exactly once; a slot stays known until its cgroup is empty.
Assumes: a Commit is carried out before the next stimulus is handled.
Why not coroutines per slot: the interesting bugs live between two awaits; here there is nothing between.
"""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Final, Literal, assert_never

from bedsit.ipc.errors import BedsitError, error
from bedsit.supervisor import instructions as do
from bedsit.supervisor import restarts
from bedsit.supervisor import stimuli as on
from bedsit.supervisor.births import ORDINARY, Birth
from bedsit.supervisor.causes import Cause
from bedsit.supervisor.events import Kind
from bedsit.supervisor.policy import Hold
from bedsit.supervisor.pool import plan_pool
from bedsit.supervisor.rolls import judge_roll, judge_room
from bedsit.supervisor.rotation import Rotation
from bedsit.supervisor.stimuli import Timer
from bedsit.supervisor.tenancy import Limits, Roll, Slot, Statistics, Tenant, TenantState, backoff_s
from bedsit.supervisor.transitions import TRANSITIONS, InvalidTransition, SlotEvent, Story

#: A slot that served this long has its tenant's failures forgiven, and a zygote that lived this long those before it.
HEALTHY_AFTER_S: Final = 10.0
#: Somebody who waits for room asks for it again after so long.
ROOM_AGAIN_S: Final = 0.25
#: A worker that closed its socket may take this long to be seen dead before it is killed.
LOST_GRACE_S: Final = 0.25
#: Until somebody has looked.
_PLENTY: Final = 1 << 62
_MIB: Final = 1 << 20
_SEE_EVENTS: Final = "see: bedsit events"
_SEE_DEVICES: Final = "see: bedsit device list"
_SEE_WALLS: Final = "what this box lacks, and how to mend it: bedsit doctor"
_SEE_ROOM: Final = "stop or park a tenant, or lower memory_reserve_bytes"
_SLOT_TIMERS: Final[tuple[on.TimerKind, ...]] = ("load", "drain", "lost", "settled")


class House:
    """All slots and tenants. Changed by ``handle`` only; everybody else reads."""

    def __init__(self, limits: Limits, new_id: Callable[[], str]) -> None:
        self.slots: dict[str, Slot] = {}
        self.tenants: dict[str, Tenant] = {}
        self.story = Story()
        self._limits = limits
        self._new_id = new_id
        self._phase: Literal["recovering", "open", "closing", "closed"] = "recovering"
        self.rotation = Rotation(limits.zygote_forks_max)
        #: Births that failed in a row, and which rest; by device, so that one that is broken holds nobody else up.
        self._pool_failures: Counter[str] = Counter()
        self._pool_resting: set[str] = set()
        #: Why the last slot of a birth was refused, and where to read on.
        self._refusals: dict[Birth, tuple[str, str]] = {}
        self._memory_left = _PLENTY
        self._room_asked = False
        #: Who waits for a blank slot, first come first served: ("tenant", name) or ("roll", operation).
        self._waiting: dict[tuple[Literal["tenant", "roll"], str], Tenant] = {}
        self._out: list[do.Instruction] = []
        self._answers: list[do.Instruction] = []
        self._dirty = False

    def handle(self, stimulus: on.Stimulus) -> list[do.Instruction]:
        """What follows from *stimulus*, in order. The router is told before a caller is answered."""
        self._hear(stimulus)
        self._settle()
        if self._dirty and self._phase != "recovering":
            self._out.append(do.Publish())
            self._dirty = False
        out = self._out + self._answers
        self._out, self._answers = [], []
        return out

    def tenant_state(self, name: str) -> TenantState:
        """What a tenant is doing now."""
        tenant = self.tenants[name]
        if not tenant.running:
            return "stopped"
        if not tenant.models:
            return "empty"
        if tenant.hold == "degraded":
            return "degraded"
        if tenant.serving:
            return "running"
        if tenant.resting or tenant.given_up:
            return "failed"
        return "starting" if tenant.wanted or (tenant.hold and tenant.target) else "parked"

    def explain_wait(self, tenant: Tenant, kind: Literal["tenant", "roll"] = "tenant") -> tuple[str, str]:
        """Why no blank slot is *tenant*'s, as the end of a sentence, and where to read on."""
        if tenant.hold:
            return f": {tenant.trouble}", _SEE_DEVICES
        blank = [s for s in self.slots.values() if s.state == "blank" and s.birth == tenant.birth]
        if blank and tenant.strict and all(slot.degraded for slot in blank):
            lacks = sorted({wall for slot in blank for wall in slot.lacks})
            return f": tenant {tenant.name!r} is strict, and walls are missing{_list_names(lacks)}", _SEE_WALLS
        if not self._may_take(kind, tenant):
            need, left = -(-tenant.slot_bytes // _MIB), max(0, self._memory_left) // _MIB
            return f": it takes {need:,} MiB of memory, and {left:,} MiB are left", _SEE_ROOM
        why, hint = self._refusals.get(tenant.birth, ("", _SEE_EVENTS))
        return f"; the last one was refused: {why}" if why else "", hint

    def statistics(self) -> Statistics:
        """Counts of slots now."""
        pool = [slot.state for slot in self.slots.values() if slot.birth == ORDINARY]
        return Statistics(self._limits.pool_size, pool.count("blank"), pool.count("building"), len(self.slots))

    # -- hearing ------------------------------------------------------------------------------------------------------

    def _hear(self, stimulus: on.Stimulus) -> None:
        match stimulus:
            case on.Begin():
                self._begin()
            case on.ZygoteUp(generation, forks):
                self._greet_zygote(generation, forks)
            case on.ZygoteDown(generation, cause):
                self._mourn_zygote(generation, cause)
            case on.TenantSet():
                self._set_tenant(stimulus)
            case on.SeatSeen(tenant, state, why):
                self._see_seat(self.tenants.get(tenant), state, why)
            case on.TenantGone(tenant):
                self._remove_tenant(tenant)
            case on.TenantWanted(tenant):
                self._wake(self.tenants.get(tenant))
            case on.TenantIdle(tenant):
                self._park(self.tenants.get(tenant))
            case on.TenantLoad(tenant, slots):
                self._scale(self.tenants.get(tenant), slots)
            case on.RoomFound(tenants, why):
                self._make_room(tenants, why)
            case on.MemoryLeft(left):
                loading = (self.tenants.get(s.tenant or "") for s in self.slots.values() if s.state == "loading")
                self._memory_left = left - sum(tenant.slot_bytes for tenant in loading if tenant is not None)
            case on.RollAsked():
                self._ask_roll(stimulus)
            case on.RollCommitted(operation):
                self._finish_roll(operation)
            case on.RollRefused(operation, why):
                self._fail_roll(operation, why)
            case on.SlotAdopted():
                self._adopt(stimulus)
            case on.ShutDown():
                self._close()
            case on.TimerFired(timer):
                self._ring(timer)
            case _:
                slot = self.slots.get(stimulus.slot)
                if slot is not None:  # else: late news of a slot that is gone
                    self._hear_of_slot(slot, stimulus)

    def _hear_of_slot(self, slot: Slot, news: on.SlotNews) -> None:
        match news:
            case on.SlotBuilt():
                self._accept(slot, news)
            case on.SlotRefused(why=why):
                self._refuse(slot, why)
            case on.ModelsLoaded(used_bytes=used_bytes):
                self._loaded(slot, used_bytes)
            case on.LoadFailed(error=why, blame=blame):
                slot.blame = blame
                self._load_failed(slot, why)
            case on.SlotDied(cause=cause, loads=loads):
                slot.blame = slot.blame or loads
                self._died(slot, "died", cause)
            case on.SlotHung(blame=blame, text=text):
                slot.blame = blame
                if slot.state in ("serving", "draining"):
                    if news.told is not None:
                        self._tell(news.told, text, slot)
                    self._died(slot, "hung", Cause("timeout", text))
            case on.SlotExceeded(text=text):
                if slot.tenant is not None and slot.state in ("loading", "serving", "draining"):
                    self._tell("memory.exceeded", text, slot)
                    self._died(slot, "exceeded", Cause("oom", text))
            case on.SlotLost(blame=blame):
                slot.blame = slot.blame or blame
                tenant = self.tenants.get(slot.tenant or "")
                if slot.is_unexplained and tenant is not None:  # the kernel was faster than the router
                    slot.is_unexplained = False
                    self._out += restarts.blame(tenant, blame)
                if slot.state in ("loading", "serving", "draining"):
                    self._out.append(do.SetTimer(Timer("lost", slot.id), LOST_GRACE_S))
            case on.SlotDrained():
                self._end(slot, "drained")
            case on.SlotGone():
                self._dirty |= slot.tenant is not None
                if slot.tenant in self.tenants:
                    self._memory_left += self.tenants[slot.tenant].slot_bytes
                self._move(slot, "gone")
                self._tell("slot.destroyed", "nothing is left of it", slot)
            case _:
                assert_never(news)

    def _ring(self, timer: Timer) -> None:
        kind, subject = timer
        slot, tenant = self.slots.get(subject), self.tenants.get(subject)
        match kind:
            case "load":
                if slot:
                    within = f"not loaded within {self._limits.load_timeout_s:g} s"
                    self._died(slot, "overdue", Cause("timeout", within))
            case "drain":
                if slot and slot.state == "draining":
                    within = f"not drained within {self._limits.drain_timeout_s:g} s"
                    self._tell("slot.died", f"while draining: {within}", slot, Cause("timeout", within))
                    self._end(slot, "overdue")
            case "lost":
                if slot:
                    text = "closed its connection to the router and went on running"
                    self._died(slot, "died", Cause("killed", text))
            case "roll":
                self._roll_overdue(subject)
            case "restart":
                if tenant:
                    tenant.resting = False
            case "healthy":
                if tenant:
                    tenant.failures = 0
                    tenant.blames.clear()
            case "period":
                if tenant:
                    tenant.deaths = 0
            case "settled":
                if slot:
                    slot.settled = True
            case "room":
                self._room_asked = False
            case "pool":
                self._pool_resting.discard(subject)
                if subject and not any(tenant.birth.device == subject for tenant in self.tenants.values()):
                    del self._pool_failures[subject]  # nobody sits on it any more: it may not even be there
                    self._refusals = {birth: why for birth, why in self._refusals.items() if birth.device != subject}
            case "zygote":
                self.rotation.resting = False
            case "lasting":
                self.rotation.lasted()
            case _:
                assert_never(kind)

    # -- tenants ------------------------------------------------------------------------------------------------------

    def _set_tenant(self, wish: on.TenantSet) -> None:
        tenant = self.tenants.setdefault(wish.tenant, Tenant(wish.tenant, running=False))
        is_other = {"profile": wish.profile != tenant.birth.profile, "seat": wish.seat != tenant.seat}
        for name in filter(is_other.get, is_other):
            self._drop_roll(tenant, error("tenant.busy", f"the {name} of tenant {tenant.name!r} was changed"))
        if is_other["seat"]:  # until somebody has looked at the new one
            tenant.seat, tenant.hold, tenant.trouble = wish.seat, "unseen" if wish.seat else "", ""
        starts = wish.running and not tenant.running and self._phase != "recovering"
        tenant.running, tenant.strict, tenant.models = wish.running, wish.strict, wish.models
        tenant.birth, tenant.policy = wish.birth, wish.policy
        tenant.slot_bytes = max(tenant.slot_bytes, wish.model_bytes)
        tenant.target = tenant.clamp(max(tenant.target, int(starts)))
        self._out += restarts.forgive(tenant)
        if not tenant.running:
            tenant.target = 0
            stopped = error("tenant.stopped", f"tenant {tenant.name!r} was stopped")
            self._drop_roll(tenant, stopped)
        for slot in tenant.crew.values():
            slot.stale |= not tenant.fits(slot)
        self._dirty = True

    def _see_seat(self, tenant: Tenant | None, state: Hold, why: str) -> None:
        """The device of its seat is as it should be, or is not: then nothing starts there, and what runs may stay."""
        if tenant is None or tenant.seat is None:
            return
        was, tenant.hold, tenant.trouble = tenant.hold, state, why
        if state == "degraded" and was != state:
            self._note("tenant.degraded", why, tenant)
            self._drop_roll(tenant, error("device.degraded", f"the device of tenant {tenant.name!r}: {why}"))
        elif was == "degraded" and not state:
            self._note("tenant.recovered", "its device can be used again", tenant)
        self._dirty |= was != state

    def _remove_tenant(self, name: str) -> None:
        tenant = self.tenants.pop(name, None)
        if tenant is None:
            return
        self._waiting.pop(("tenant", name), None)
        self._out += restarts.forgive(tenant)
        self._out.append(do.StopTimer(Timer("healthy", name)))
        self._drop_roll(tenant, error("tenant.not_found", f"tenant {name!r} was deleted"))
        for slot in list(self.slots.values()):
            if slot.tenant == name:
                self._end(slot, "abandoned")
        self._dirty = True

    # -- coming and going ---------------------------------------------------------------------------------------------

    def _wake(self, tenant: Tenant | None) -> None:
        if tenant is not None and tenant.running and tenant.models and not tenant.target:
            tenant.target = tenant.clamp(1)
            self._note("tenant.woken", "somebody asks for it", tenant)

    def _park(self, tenant: Tenant | None) -> None:
        """Nobody asks for it: as few slots as its policy allows."""
        if tenant is None or tenant.roll is not None or tenant.target <= tenant.policy.min_slots:
            return
        if tenant.policy.min_slots == 0 and not tenant.can_park:
            return
        tenant.target = tenant.policy.min_slots
        self._note("tenant.parked", f"idle; {tenant.target} slots are kept", tenant)

    def _scale(self, tenant: Tenant | None, slots: int) -> None:
        if tenant is None or not tenant.target:
            return
        target = tenant.clamp(max(1, slots))
        if target == tenant.target or (target < tenant.target and not all(slot.settled for slot in tenant.serving)):
            return
        self._note("tenant.scaled", f"from {tenant.target} slots to {target}", tenant)
        tenant.target = target

    def _make_room(self, names: Sequence[str], why: str) -> None:
        """Park the first that may be. One at a time: what its slot leaves behind may do."""
        for name in names:
            tenant = self.tenants.get(name)
            if tenant is not None and tenant.can_park:
                tenant.target = 0
                self._note("tenant.evicted", f"until somebody asks for it: {why}", tenant)
                return

    # -- rolls --------------------------------------------------------------------------------------------------------

    def _ask_roll(self, ask: on.RollAsked) -> None:
        tenant = self.tenants.get(ask.tenant)
        refusal = judge_roll(tenant, ask, is_open=self._phase == "open") or judge_room(
            ask, self.slots.values(), len(self._waiting), self._limits, self.tenants.values()
        )
        if tenant is None or refusal is not None:
            self._answers.append(do.Answer(ask.operation, refusal))
            return
        tenant.roll = Roll(ask.operation, ask.models, ask.timeout_s)
        if not ask.models:
            self._out.append(do.Commit(ask.operation, None))
            return
        self._waiting["roll", ask.operation] = tenant
        self._out.append(do.SetTimer(Timer("roll", ask.operation), ask.timeout_s))

    def _finish_roll(self, operation: str) -> None:
        tenant = self._tenant_of(operation)
        if tenant is None or tenant.roll is None:
            return
        roll, tenant.roll = tenant.roll, None
        self._out.append(do.StopTimer(Timer("roll", operation)))
        tenant.models = roll.models
        self._out += restarts.forgive(tenant)
        for slot in tenant.crew.values():
            slot.stale = True
        if roll.slot:
            slot = self.slots[roll.slot]
            tenant.crew[slot.id] = slot
            tenant.target = tenant.clamp(max(1, tenant.target))
            self._promote(slot, tenant)
        self._answers.append(do.Answer(operation, None))
        self._dirty = True

    def _roll_overdue(self, operation: str) -> None:
        tenant = self._tenant_of(operation)
        if tenant is None or tenant.roll is None:
            return
        within = f"within {tenant.roll.timeout_s:g} s"
        if tenant.roll.slot:
            cause = Cause("timeout", f"not loaded {within}")
            self._tell("slot.died", f"while loading: {cause.text}", self.slots[tenant.roll.slot], cause)
            self._fail_roll(operation, error("deadline.exceeded", f"the model was not loaded {within}"))
        else:
            why, hint = self.explain_wait(tenant, "roll")
            self._fail_roll(operation, error("pool.empty", f"no blank slot {within}{why}", hint))

    def _fail_roll(self, operation: str, why: BedsitError) -> None:
        tenant = self._tenant_of(operation)
        if tenant is not None:
            self._drop_roll(tenant, why)

    def _drop_roll(self, tenant: Tenant, why: BedsitError) -> None:
        """Answer a roll with *why* and end its slot. The committed set is untouched."""
        if tenant.roll is None:
            return
        roll, tenant.roll = tenant.roll, None
        self._waiting.pop(("roll", roll.operation), None)
        self._out.append(do.StopTimer(Timer("roll", roll.operation)))
        self._answers.append(do.Answer(roll.operation, why))
        if roll.slot:
            self._end(self.slots[roll.slot], "abandoned")

    def _tenant_of(self, operation: str) -> Tenant | None:
        found = (t for t in self.tenants.values() if t.roll and t.roll.operation == operation)
        return next(found, None)

    # -- slots --------------------------------------------------------------------------------------------------------

    def _accept(self, slot: Slot, built: on.SlotBuilt) -> None:
        if built.degraded and slot.state == "building" and all(tenant.strict for tenant in self.tenants.values()):
            why = f"required walls are missing{_list_names(built.lacks)}, and every tenant is strict"
            self._refuse(slot, why, _SEE_WALLS)
            return
        if self._move(slot, "built"):
            slot.degraded, slot.lacks, slot.generation = built.degraded, built.lacks, built.generation
            del self._pool_failures[slot.birth.device]
            self.rotation.built(built.generation)
            self._refusals.pop(slot.birth, None)
            self._tell("slot.ready", "blank, with walls missing" if slot.degraded else "blank, every wall up", slot)

    def _refuse(self, slot: Slot, why: str, hint: str = _SEE_EVENTS) -> None:
        if self._end(slot, "refused"):
            self._refusals[slot.birth] = (why, hint)
            self._tell("slot.refused", why, slot)
            self._rest_pool(slot.birth.device)

    def _adopt(self, found: on.SlotAdopted) -> None:
        slot = Slot(found.slot, found.state, found.tenant, found.models, None, found.degraded, found.generation)
        slot.birth, slot.seat = found.birth, found.seat
        self.slots[slot.id] = slot
        tenant = self.tenants.get(slot.tenant or "")
        self._tell("slot.adopted", found.state + _name_lack(slot, tenant), slot)
        if slot.tenant is None:
            return
        self._dirty = True
        if tenant is None:
            self._end(slot, "abandoned")
        elif slot.state == "draining":
            self._out.append(do.SetTimer(Timer("drain", slot.id), self._limits.drain_timeout_s))
        else:
            slot.stale, slot.settled = not tenant.fits(slot), slot.state == "serving"
            tenant.crew[slot.id] = slot
            known = max(len(tenant.fresh), len(tenant.crew) - len(tenant.fresh))  # the others are being replaced
            tenant.target = tenant.clamp(max(tenant.target, known)) if tenant.running else 0
            if slot.state == "loading":
                self._out.append(do.SetTimer(Timer("load", slot.id), self._limits.load_timeout_s))

    def _loaded(self, slot: Slot, used_bytes: int) -> None:
        tenant = self.tenants.get(slot.tenant or "")
        if slot.state != "loading" or tenant is None:
            self._move(slot, "loaded")  # a worker that lies: remembered in the story
            return
        tenant.slot_bytes = used_bytes or tenant.slot_bytes
        if slot.operation is not None:
            self._out.append(do.Commit(slot.operation, slot.id))
        else:
            self._promote(slot, tenant)

    def _promote(self, slot: Slot, tenant: Tenant) -> None:
        self._move(slot, "loaded")
        slot.operation = None
        self._out += [
            do.StopTimer(Timer("load", slot.id)),
            do.Record(slot.id, "serving"),
            do.SetTimer(Timer("healthy", tenant.name), HEALTHY_AFTER_S),
            do.SetTimer(Timer("settled", slot.id), self._limits.residence_s),
        ]
        self._dirty = True

    def _supersede(self, slot: Slot) -> None:
        """Let a slot of a crew finish what it has; one that still loads has nothing."""
        self._leave_crew(slot)
        if slot.state == "serving" and self._move(slot, "superseded"):
            self._out += [
                do.Record(slot.id, "draining"),
                do.SetTimer(Timer("drain", slot.id), self._limits.drain_timeout_s),
            ]
            self._dirty = True
        elif slot.state == "loading":
            self._end(slot, "superseded")

    def _load_failed(self, slot: Slot, why: BedsitError) -> None:
        if slot.state == "loading":
            self._tell("model.load_failed", why.message, slot)
            if slot.operation is not None:
                self._fail_roll(slot.operation, why)
                return
        self._died(slot, "load_failed", Cause("exit", why.message))

    def _died(self, slot: Slot, event: SlotEvent, cause: Cause) -> None:
        """A slot that ended, or has to, for a reason that counts against its tenant."""
        was = slot.state
        if not self._end(slot, event):
            return
        self._tell("slot.died", f"while {was}: {cause.text}", slot, cause)
        tenant = self.tenants.get(slot.tenant or "")
        if tenant is None:
            self._rest_pool(slot.birth.device)
        elif slot.operation is not None:
            hint = "raise the tenant's memory limit" if cause.kind == "oom" else "see: bedsit logs"
            crashed = error("worker.crashed", f"the worker ended while loading: {cause.text}", hint, cause=cause.kind)
            self._fail_roll(slot.operation, crashed)
        elif slot.id in tenant.crew:
            self._out += restarts.mourn(tenant, slot, cause)

    def _end(self, slot: Slot, event: SlotEvent) -> bool:
        """Move a slot to dying. False: the table says that this is no news."""
        if not self._move(slot, event):
            return False
        if event in ("superseded", "abandoned"):
            self._leave_crew(slot)
        self._out += [do.StopTimer(Timer(kind, slot.id)) for kind in _SLOT_TIMERS]
        self._out.append(do.DestroySlot(slot.id))
        self._dirty |= slot.tenant is not None
        return True

    def _move(self, slot: Slot, event: SlotEvent) -> bool:
        outcome = TRANSITIONS[slot.state, event]
        self.story.add(slot.id, slot.state, event, outcome)
        if outcome == "rejected":
            raise InvalidTransition(slot.id, slot.state, event, self.story.of(slot.id))
        if outcome == "ignored":
            return False
        if outcome == "gone":
            del self.slots[slot.id]
        else:
            slot.state = outcome
        return True

    # -- the house ----------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._phase = "open"
        self.rotation.resting = False  # no timer was set before
        self._dirty = True

    def _greet_zygote(self, generation: int, forks: int) -> None:
        forked = self.rotation.forks
        former = self.rotation.up(generation, forks)
        if self._phase == "recovering":  # found, not started: what an earlier daemon began to replace goes on
            self.rotation.oldest_kept = generation
            return
        self._tell("zygote.started", f"generation {generation}")
        self._out.append(do.SetTimer(Timer("lasting"), HEALTHY_AFTER_S))
        if former is not None:
            self._out.append(do.RetireZygote(former))
            why = f"generation {former} forked {forked} slots; generation {generation} replaces it and its blank slots"
            self._tell("zygote.retired", why)

    def _mourn_zygote(self, generation: int, cause: str) -> None:
        delay_s = self.rotation.down(generation)
        if self.rotation.current is None:
            self._out.append(do.StopTimer(Timer("lasting")))
        self._tell("zygote.died", cause)
        if delay_s and self._phase == "open":
            self._out.append(do.SetTimer(Timer("zygote"), delay_s))

    def _rest_pool(self, device: str) -> None:
        self._pool_failures[device] += 1
        self._pool_resting.add(device)
        self._out.append(do.SetTimer(Timer("pool", device), backoff_s(self._pool_failures[device] + 1)))

    def _close(self) -> None:
        if self._phase in ("closing", "closed"):
            return
        self._phase = "closing"
        closing = error("daemon.unavailable", "the daemon is going down with all its slots")
        for tenant in self.tenants.values():
            self._drop_roll(tenant, closing)
        self._waiting.clear()
        for slot in list(self.slots.values()):
            self._end(slot, "abandoned")

    def _settle(self) -> None:
        """What is wanted against what is: hand out blank slots, then build what is missing."""
        if self._phase == "closing" and not self.slots:
            self._phase = "closed"
            self._out.append(do.Finish())
        if self._phase != "open":
            return
        for tenant in self.tenants.values():
            if tenant.crew:
                for slot in tenant.surplus:
                    self._supersede(slot)
            if tenant.target and tenant.missing:
                self._waiting.setdefault(("tenant", tenant.name), tenant)
            else:
                self._waiting.pop(("tenant", tenant.name), None)
        for (kind, _), tenant in list(self._waiting.items()):
            while self._assign(kind, tenant) and kind == "tenant" and tenant.missing:
                pass
        self._fill_pool()
        self._ask_for_room()
        if self.rotation.needs_start:
            self.rotation.starting = True
            self._out.append(do.StartZygote())

    def _ask_for_room(self) -> None:
        """Where somebody waits, the box or its memory is full, and nobody is about to leave."""
        ends = any(slot.state in ("building", "dying", "draining") for slot in self.slots.values())
        is_full = len(self.slots) >= self._limits.max_slots
        waits = any(is_full or not self._may_take(kind, tenant) for (kind, _), tenant in self._waiting.items())
        if waits and not ends and not self._room_asked:
            self._room_asked = True
            self._out += [do.FindRoom(), do.SetTimer(Timer("room"), ROOM_AGAIN_S)]

    def _assign(self, kind: Literal["tenant", "roll"], tenant: Tenant) -> bool:
        if tenant.hold or not self._may_take(kind, tenant):
            return False
        fit = (s for s in self.slots.values() if s.state == "blank" and tenant.takes(s))
        slot = max(fit, key=lambda s: s.generation, default=None)
        if slot is None:
            return False
        self._move(slot, "taken")
        slot.tenant, slot.seat = tenant.name, tenant.seat
        if kind == "roll" and tenant.roll:
            del self._waiting["roll", tenant.roll.operation]
            slot.models, slot.operation, tenant.roll.slot = tenant.roll.models, tenant.roll.operation, slot.id
        else:
            slot.models, tenant.crew[slot.id] = tenant.models, slot
            if not tenant.missing:
                del self._waiting["tenant", tenant.name]
            self._out.append(do.SetTimer(Timer("load", slot.id), self._limits.load_timeout_s))
        self._memory_left -= tenant.slot_bytes
        self._out.append(do.AssignSlot(slot.id, tenant.name, slot.models))
        self._dirty = True
        return True

    def _may_take(self, kind: Literal["tenant", "roll"], tenant: Tenant) -> bool:
        """Whether there is memory for another slot of it; what was promised, or is being deployed, is not asked."""
        return kind == "roll" or tenant.is_owed or tenant.slot_bytes <= self._memory_left

    def _fill_pool(self) -> None:
        if self.rotation.current is None:
            return
        asked = [
            tenant
            for (kind, _), tenant in self._waiting.items()
            if self._may_take(kind, tenant)
            for _ in range(tenant.missing if kind == "tenant" else 1)
        ]
        most, oldest = self._limits.max_slots, self.rotation.oldest_kept
        plan = plan_pool(self.slots.values(), asked, most, oldest, self._stock(), self._pool_resting)
        for slot in plan.end:
            self._end(slot, "abandoned")
        for birth in plan.build:
            slot = Slot(self._new_id(), birth=birth)
            self.slots[slot.id] = slot
            self.rotation.forks += 1
            self._out.append(do.BuildSlot(slot.id, birth))

    def _stock(self) -> dict[Birth, int]:
        """How many blank slots are kept ready, by what they were born as; none while memory is short."""
        if self._memory_left < 0:
            return {ORDINARY: 0}
        stock = {ORDINARY: self._limits.pool_size}
        if self._limits.device_stock:
            births = {tenant.birth for tenant in self.tenants.values() if tenant.birth.device and tenant.may_want}
            stock |= dict.fromkeys(births, self._limits.device_stock)
        return stock

    def _leave_crew(self, slot: Slot) -> None:
        tenant = self.tenants.get(slot.tenant or "")
        if tenant is not None:
            tenant.crew.pop(slot.id, None)

    def _note(self, kind: Kind, text: str, tenant: Tenant) -> None:
        self._out.append(do.Tell(kind, text, tenant.name))

    def _tell(self, kind: Kind, text: str, slot: Slot | None = None, cause: Cause | None = None) -> None:
        tenant, name = (slot.tenant, slot.id) if slot else (None, None)
        self._out.append(do.Tell(kind, text, tenant, name, cause))


def _list_names(walls: Collection[str]) -> str:
    return f" ({', '.join(walls)})" if walls else ""


def _name_lack(slot: Slot, tenant: Tenant | None) -> str:
    """What an operator has to know of an adopted slot's walls: it is not ended for one that is missing."""
    if not slot.degraded:
        return ""
    return ", with walls missing" + (" that its tenant requires" if tenant and tenant.strict else "")
