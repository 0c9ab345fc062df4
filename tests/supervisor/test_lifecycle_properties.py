"""The house under any order of stimuli: what lifecycle.py guarantees, held against a model of the shell."""

import itertools
from collections import Counter

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bedsit.ipc.errors import error
from bedsit.sandbox.jail.context import Profile
from bedsit.supervisor import instructions as do
from bedsit.supervisor import stimuli as on
from bedsit.supervisor.births import ORDINARY, Birth
from bedsit.supervisor.causes import Cause
from bedsit.supervisor.lifecycle import House
from bedsit.supervisor.placement.seating import Seat
from bedsit.supervisor.policy import Hold, ModelSet, Policy
from bedsit.supervisor.stimuli import Timer
from bedsit.supervisor.tenancy import Limits

TENANTS = st.sampled_from(["a", "b", "c"])
SEATS = st.sampled_from([None, Seat(("cpu0",), cores=(1,)), Seat(("GPU-1",))])
SETS = st.sampled_from([(), ((1, 1),), ((1, 1), (1, 2)), ((1, 2), (2, 1))])
POLICIES = st.builds(
    lambda restart, most, quarantine, bounds: Policy(restart, most, 600.0, quarantine, *bounds, idle_s=1.0),
    st.sampled_from(["permanent", "transient", "temporary"]),
    st.sampled_from([0, 2]),
    st.sampled_from([0, 2]),
    st.sampled_from([(0, 1), (1, 1), (0, 2), (1, 3), (2, 2)]),
)
PLACES = st.sampled_from([None, (1, 1), (1, 2), (9, 9)])
PROFILES = st.sampled_from(["standard", "subprocess"])
SEATS = st.sampled_from([None, None, Seat(("gpu0",)), Seat(("gpu1",)), Seat(("cpu0",), cores=(1,))])
HOLDS: st.SearchStrategy[Hold] = st.sampled_from(["", "", "unseen", "degraded"])
CAUSES = st.sampled_from([Cause("oom", "out of memory"), Cause("signal", "signal 9"), Cause("exit", "exit status 0")])
POOL, MOST, FORKS = 2, 5, 3


class Shell(RuleBasedStateMachine):
    """Carries out instructions in a toy world and lets anything happen in any order."""

    @initialize(best_effort=st.booleans(), warm=st.sampled_from([0, 0, 1]))
    def open(self, *, best_effort: bool, warm: int) -> None:
        """An open house with a zygote."""
        numbers = itertools.count(1)
        self.house = House(Limits(POOL, MOST, 120.0, 60.0, FORKS, device_stock=warm), lambda: f"s{next(numbers)}")
        self.births: dict[str, Birth] = {}
        self.operations = itertools.count(1)
        self.best_effort = best_effort
        self.pending: set[str] = set()
        self.answered: list[str] = []
        self.timers: set[Timer] = set()
        self.assigned: dict[str, tuple[str, ModelSet]] = {}
        self.destroyed: set[str] = set()
        self.gone: set[str] = set()
        self.published: dict[str, str] = {}
        self.generations = itertools.count(1)
        self.zygote = self.starting = 0
        self.builders: dict[str, int] = {}
        self.blank: set[str] = set()
        self.about = ""
        self.closing = self.finished = self.tight = False
        self.hear(on.Begin())
        self.zygote_comes(works=True)

    def hear(self, stimulus: on.Stimulus) -> None:
        """Handle a stimulus and carry out what follows."""
        self.about = getattr(stimulus, "slot", "")
        self.blank = {slot.id for slot in self.house.slots.values() if slot.state == "blank"}
        self.hear_later: on.Stimulus | None = None
        for instruction in self.house.handle(stimulus):
            self.carry_out(instruction)
        if self.hear_later is not None:
            self.hear(self.hear_later)

    def carry_out(self, instruction: do.Instruction) -> None:
        """Do what the shell would do, and check that it may be asked."""
        match instruction:
            case do.BuildSlot(slot, birth):
                self.births[slot] = birth
                assert not self.closing
                assert birth.device not in self.house._pool_resting, "what has just failed is left alone for a while"
                assert self.zygote, "somebody has to fork it"
                self.builders[slot] = self.zygote
            case do.AssignSlot(slot, tenant, models):
                assert slot not in self.assigned, "a slot serves one tenant, once"
                assert slot not in self.destroyed
                assert self.house.slots[slot].seat == self.house.tenants[tenant].seat
                assert not self.house.tenants[tenant].hold, "nothing starts where nothing can"
                assert self.births[slot] == self.house.tenants[tenant].birth, "not of another device, nor profile"
                self.assigned[slot] = (tenant, models)
            case do.DestroySlot(slot):
                assert slot not in self.destroyed, "a slot is destroyed once"
                if slot in self.blank and slot != self.about and not self.closing and not self.makes_room(slot):
                    full = len(self.house.slots) == MOST
                    assert full or self.house.statistics().blank >= POOL, "a replaced generation costs the pool nothing"
                    assert self.builders[slot] < self.zygote, "nobody else's blank slot is replaced"
                self.destroyed.add(slot)
            case do.Commit(operation):
                assert operation in self.pending
                self.commit(operation)
            case do.Answer(operation):
                assert operation in self.pending, "an operation is answered once"
                self.pending.remove(operation)
            case do.SetTimer(timer, delay_s):
                assert delay_s >= 0
                self.timers.add(timer)
            case do.StopTimer(timer):
                self.timers.discard(timer)
            case do.StartZygote():
                assert not self.closing
                assert not self.starting, "one at a time"
                self.starting = next(self.generations)
            case do.RetireZygote(generation):
                assert generation != self.zygote, "another one has taken over"
            case do.Finish():
                assert not self.house.slots
                assert not self.finished, "finished once"
                self.finished = True
            case do.FindRoom():
                assert self.house._waiting, "somebody needs it"
                self.hear_later = on.RoomFound(("a", "b", "c"), "full")
            case do.Quarantine(tenant, place):
                assert place in self.house.tenants[tenant].models
            case do.Publish():
                self.published = {slot.id: slot.state for slot in self.house.slots.values() if slot.tenant}

    def makes_room(self, slot: str) -> bool:
        """Whether a blank slot may go: for want of memory, or for a birth that the pool does not hold."""
        if self.tight:
            return True
        waits = any(tenant.birth != ORDINARY for tenant in self.house._waiting.values())
        return waits or self.births[slot] != ORDINARY

    def commit(self, operation: str) -> None:
        """Write down, or fail to."""
        if self.fails_to_commit:
            self.hear(on.RollRefused(operation, error("disk.full", "no room")))
        else:
            self.hear(on.RollCommitted(operation))

    fails_to_commit = False

    def some_slot(self, data: st.DataObject) -> str:
        """A slot that is there, or one that never was."""
        return data.draw(st.sampled_from([*sorted(self.house.slots), "s999"]))

    @rule(works=st.booleans())
    def zygote_comes(self, *, works: bool) -> None:
        """The one that was asked for starts, or does not."""
        generation, self.starting = self.starting, 0
        if generation and works:
            self.zygote = generation
            self.hear(on.ZygoteUp(generation, 0))
        elif generation:
            self.hear(on.ZygoteDown(generation, "did not start"))

    @precondition(lambda self: self.starting)
    @rule()
    def zygote_is_up(self) -> None:
        """The one that was asked for starts."""
        self.zygote_comes(works=True)

    @precondition(lambda self: self.zygote)
    @rule()
    def zygote_goes(self) -> None:
        """The one that forks dies."""
        generation, self.zygote = self.zygote, 0
        self.hear(on.ZygoteDown(generation, "gone"))

    @rule(tenant=TENANTS, running=st.booleans(), models=SETS, profile=PROFILES, policy=POLICIES, seat=SEATS)
    def set_tenant(
        self, *, tenant: str, running: bool, models: ModelSet, profile: Profile, policy: Policy, seat: Seat | None
    ) -> None:
        """The operator wishes."""
        self.hear(on.TenantSet(tenant, running, not self.best_effort, models, profile, policy, seat=seat))
        self.hear(on.SeatSeen(tenant, "", ""))

    @rule(tenant=TENANTS, state=HOLDS)
    def look_at_seat(self, tenant: str, state: Hold) -> None:
        """The device of a seat can be used, or not."""
        self.hear(on.SeatSeen(tenant, state, "why" if state else ""))

    @rule(tenant=TENANTS, models=SETS, policy=POLICIES)
    def start_tenant(self, *, tenant: str, models: ModelSet, policy: Policy) -> None:
        """The operator wishes for what most wish for."""
        self.hear(on.TenantSet(tenant, running=True, strict=False, models=models, policy=policy))

    @rule(tenant=TENANTS, slots=st.integers(0, 5))
    def meter_says(self, *, tenant: str, slots: int) -> None:
        """More or fewer slots are needed, or none."""
        self.hear(on.TenantLoad(tenant, slots) if slots else on.TenantIdle(tenant))

    @rule(tenant=TENANTS)
    def request_comes(self, tenant: str) -> None:
        """Somebody asks for a tenant without a slot."""
        self.hear(on.TenantWanted(tenant))

    @rule(left=st.sampled_from((-1, 0, 5, 10, 1 << 62)))
    def memory_ends(self, *, left: int) -> None:
        """The box runs out of memory, or has some again."""
        self.tight |= left < 1 << 62
        self.hear(on.MemoryLeft(left))
        if left < 0:
            self.hear(on.RoomFound(("c", "x", "a", "b"), "why not"))

    @rule(tenant=TENANTS)
    def delete_tenant(self, tenant: str) -> None:
        """The operator deletes."""
        self.hear(on.TenantGone(tenant))

    @rule(tenant=TENANTS, models=SETS, fails=st.booleans())
    def roll(self, *, tenant: str, models: ModelSet, fails: bool) -> None:
        """Somebody deploys."""
        operation = f"op{next(self.operations)}"
        self.pending.add(operation)
        self.fails_to_commit = fails
        self.hear(on.RollAsked(operation, tenant, models, 60.0))

    @rule(data=st.data(), degraded=st.booleans(), works=st.booleans())
    def end_a_build(self, *, data: st.DataObject, degraded: bool, works: bool) -> None:
        """A build ends one way or the other."""
        building = sorted(slot.id for slot in self.house.slots.values() if slot.state == "building")
        if building:
            slot = data.draw(st.sampled_from(building))
            built = on.SlotBuilt(slot, self.builders[slot], degraded=degraded)
            self.hear(built if works else on.SlotRefused(slot, "no"))

    def go_on(self, data: st.DataObject) -> None:
        """The news that a slot is there for: without this rule most runs would stay in the hall."""
        slot = self.house.slots.get(self.some_slot(data))
        if slot is None:
            return
        if slot.state == "dying":
            self.gone.add(slot.id)
        news: dict[str, on.Stimulus] = {
            "building": on.SlotBuilt(slot.id, self.builders[slot.id]),
            "loading": on.ModelsLoaded(slot.id),
            "draining": on.SlotDrained(slot.id),
            "dying": on.SlotGone(slot.id),
        }
        if slot.state in news:
            self.hear(news[slot.state])

    well = rule(data=st.data())(go_on)
    better = rule(data=st.data())(go_on)
    best = rule(data=st.data())(go_on)

    @rule(data=st.data())
    def loaded(self, data: st.DataObject) -> None:
        """Any worker says that it serves."""
        self.hear(on.ModelsLoaded(self.some_slot(data)))

    @rule(data=st.data())
    def load_failed(self, data: st.DataObject) -> None:
        """Any worker says that it does not load."""
        self.hear(on.LoadFailed(self.some_slot(data), error("model.load_failed", "no")))

    @rule(data=st.data(), cause=CAUSES)
    def die(self, data: st.DataObject, cause: Cause) -> None:
        """Any slot dies."""
        self.hear(on.SlotDied(self.some_slot(data), cause))

    @rule(data=st.data())
    def router_says(self, data: st.DataObject) -> None:
        """The router says something of any slot."""
        slot = self.some_slot(data)
        ran = data.draw(PLACES)
        news = [on.SlotLost(slot, ran), on.SlotDrained(slot), on.SlotHung(slot, ran, "a call has not ended")]
        self.hear(data.draw(st.sampled_from(news)))

    @rule(data=st.data())
    def exceed(self, data: st.DataObject) -> None:
        """Any slot has too much of its GPU's memory."""
        self.hear(on.SlotExceeded(self.some_slot(data), "out of GPU memory"))

    @precondition(lambda self: self.destroyed - self.gone)
    @rule(data=st.data())
    def emptied(self, data: st.DataObject) -> None:
        """A destroyed slot is empty."""
        slot = data.draw(st.sampled_from(sorted(self.destroyed - self.gone)))
        self.gone.add(slot)
        self.hear(on.SlotGone(slot))

    @precondition(lambda self: self.timers)
    @rule(data=st.data())
    def ring(self, data: st.DataObject) -> None:
        """A timer rings."""
        timer = data.draw(st.sampled_from(sorted(self.timers)))
        self.timers.remove(timer)
        self.hear(on.TimerFired(timer))

    @precondition(lambda self: len(self.gone) > POOL)
    @rule()
    def shut_down(self) -> None:
        """The house closes."""
        self.closing = True
        self.hear(on.ShutDown())

    @invariant()
    def slots_are_bounded(self) -> None:
        """Never more than max_slots."""
        assert len(self.house.slots) <= MOST

    @invariant()
    def no_more_slots_take_requests_than_the_policy_says(self) -> None:
        """Fresh ones, and of those that are replaced as many as are not replaced yet."""
        if self.closing:
            return
        for tenant in self.house.tenants.values():
            assert len(tenant.fresh) <= tenant.wanted <= tenant.policy.max_slots
            assert len(tenant.serving) <= max(tenant.wanted, len(tenant.fresh))

    @invariant()
    def tenants_and_slots_agree(self) -> None:
        """What a tenant thinks that it has, it has; who serves and is not leaving is of its tenant's crew."""
        for tenant in self.house.tenants.values():
            for slot in tenant.crew.values():
                assert self.house.slots[slot.id] is slot
                assert slot.tenant == tenant.name
                assert slot.state in ("loading", "serving")
                assert self.assigned[slot.id] == (tenant.name, slot.models)
            for slot in tenant.fresh:
                assert tenant.fits(slot)
            if tenant.roll is not None and tenant.roll.slot is not None:
                assert self.house.slots[tenant.roll.slot].state == "loading"
        if not self.closing:
            for slot in self.house.slots.values():
                if slot.state == "serving":
                    assert slot.id in self.house.tenants[slot.tenant or ""].crew

    @invariant()
    def nobody_is_forgotten(self) -> None:
        """A tenant that should have more slots waits for one, rests with its timer set, or has a device to wait for."""
        if self.closing:
            return
        for tenant in self.house.tenants.values():
            if tenant.resting:
                assert Timer("restart", tenant.name) in self.timers
            elif not tenant.given_up and not tenant.hold and tenant.wanted > len(tenant.fresh):
                assert ("tenant", tenant.name) in self.house._waiting
            assert not tenant.running or tenant.target >= tenant.policy.min_slots

    @invariant()
    def a_zygote_is_there_or_on_its_way(self) -> None:
        """None, or one that has forked enough: the next one starts, or its timer is set."""
        if not self.closing and (not self.zygote or self.house.rotation.forks >= FORKS):
            assert self.starting or Timer("zygote") in self.timers

    @invariant()
    def blank_slots_of_an_old_generation_do_not_stay(self) -> None:
        """One after the other; in a full box the old one goes first, when nobody waits."""
        kept = self.house.rotation.oldest_kept
        old = [slot for slot in self.house.slots.values() if slot.state == "blank" and slot.generation < kept]
        stale = [slot for slot in old if Timer("pool", slot.birth.device) not in self.timers]
        states = {slot.state for slot in self.house.slots.values()}
        if stale and self.zygote and not self.closing:
            full = len(self.house.slots) == MOST
            assert "building" in states or (full and ("dying" in states or self.house._waiting))

    @invariant()
    def only_what_is_in_stock_is_pooled(self) -> None:
        """A blank slot of another birth is there for somebody who waits."""
        if self.closing or self.house.rotation.current is None:
            return
        blank = Counter(slot.birth for slot in self.house.slots.values() if slot.state == "blank")
        for birth in blank.keys() - self.house._stock().keys():
            if birth.device not in self.house._pool_resting:
                waiting = [t for t in self.house._waiting.values() if t.birth == birth]
                assert blank[birth] <= sum(max(1, t.missing) for t in waiting)

    @invariant()
    def a_slot_serves_on_its_device_only(self) -> None:
        """Whoever has changed its device has none but stale slots of the former one, and on none other."""
        for slot in self.house.slots.values():
            tenant = self.house.tenants.get(slot.tenant or "")
            assert slot.birth == self.births[slot.id], "for life"
            if tenant is not None and slot.id in tenant.crew and slot.birth != tenant.birth:
                assert slot.stale

    @invariant()
    def an_open_operation_can_end(self) -> None:
        """Whoever waits has a deadline."""
        for operation in self.pending:
            assert Timer("roll", operation) in self.timers

    @invariant()
    def the_router_knows_what_is(self) -> None:
        """What was published last is what is."""
        known = {slot.id: slot.state for slot in self.house.slots.values() if slot.tenant}
        assert self.published == known

    @invariant()
    def slots_are_ended_or_wanted(self) -> None:
        """Nothing lingers without a deadline."""
        for slot in self.house.slots.values():
            assert (slot.state == "dying") == (slot.id in self.destroyed)
            if slot.state == "draining":
                assert Timer("drain", slot.id) in self.timers

    def teardown(self) -> None:
        """However it went, a shutdown ends it: every operation answered, every slot gone, finished once."""
        if not hasattr(self, "house"):
            return
        self.closing = True
        self.hear(on.ShutDown())
        for slot in sorted(self.destroyed - self.gone):
            self.hear(on.SlotGone(slot))
        assert not self.pending
        assert not self.house.slots
        assert self.finished


TestHouse = Shell.TestCase
TestHouse.settings = settings(
    max_examples=250, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
