"""The gate of a device: only so many batches run there at once, and tenants take turns in the order of the fair queue.

Guarantees: a request of a tenant that was idle waits for at most one batch of somebody else, the one that runs, or
what is left of its turn where it can yield. A batch that is still there when its time is over loses its turn to others
while it goes on, and is charged to the end: who hangs holds up nobody. A tenant that is alone here does not pay for the
queue: it is charged from when somebody else comes, as the queue remembers nothing older than a batch anyway.

On a device with turns (``turn_ms``) the one that is next is at its worker already, and waits there for its lease
page: when a turn ends, a word in a page and a packet begin the next one. Who may run, and since when, is written there
by this process and measured by its clock; a worker is asked for nothing but to yield.

What is next was picked while the batch before ran, by the estimate of that one. So an estimate that was wrong is put
right one batch later than without; the bounds of the fair queue hold with one more batch of each.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import structlog

from bedsit.ipc.leasepage import Turn
from bedsit.ipc.snapshot import DeviceView
from bedsit.supervisor.router.fairqueue import FairQueue
from bedsit.supervisor.router.lines import Line
from bedsit.supervisor.router.loop import Loop
from bedsit.supervisor.router.requests import Batch
from bedsit.supervisor.router.slots import SlotLink
from bedsit.supervisor.router.tenants import Tenant

_LOOK_S: Final = 0.05  # how often it is looked for turns that are over
_CLASSES: Final = {"realtime": 0, "interactive": 1, "batch": 2}
_log = structlog.get_logger("router.gate")


class Gate:
    """Lets the batches of *device* run.

    *form_next* takes a tenant's next batch out of its line, or gives None; *on_overrun* hears of one that has kept a
    strict device for too long. *before* is what ``measure`` gave of the last gate of this device.
    """

    def __init__(
        self,
        device: DeviceView,
        loop: Loop,
        form_next: Callable[[Tenant, int], Batch | None],
        on_overrun: Callable[[Batch], None],
        clock: Callable[[], int] = time.monotonic_ns,
        before: tuple[int, int, int] = (0, 0, 0),
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._form_next = form_next
        self._on_overrun = on_overrun
        self._tenants: dict[str, Tenant] = {}
        self._queue = FairQueue()
        self._woken: set[str] = set()  # tenants that wait, as the queue knows
        self._woken_ns = 0  # since when there is one
        self._running: dict[Batch, None] = {}  # those that have a turn, oldest first
        self._parked: dict[str, list[Batch]] = {}  # at a worker without a turn, by tenant: sent ahead, or yielded
        self._overran: dict[Batch, None] = {}  # their turn was taken away, and they run on
        self._next: Batch | None = None  # of those parked, who gets the next turn
        self._heirs: set[SlotLink] = set()  # slots that had a turn of the router before, and may be at it still
        self._heirs_until_ns = 0
        self._closed = False
        self.set_device(device)
        self._watching = False
        self._free_ns = self._clock()  # since when nobody has a turn, where nobody has
        wall_ns, self.idle_ns, self.gaps_ns = before
        self._began_ns = self._free_ns - wall_ns

    # --- who is here -----------------------------------------------------------------------------------------------

    def set_device(self, device: DeviceView) -> None:
        """Its terms, from the next turn on."""
        self.device = device
        self._turn_ns = int(device.turn_ms * 1e6)
        self._hard_ns = int(device.hard_ms * 1e6)

    @property
    def has_turns(self) -> bool:
        """Whether workers are told by their pages when they may run."""
        return self._turn_ns > 0

    def add(self, tenant: Tenant) -> None:
        """A tenant that may have work; ``update`` says on which terms."""
        self._tenants[tenant.view.name] = tenant
        self._queue.add(tenant.view.name)

    def update(self, tenants: Sequence[Tenant]) -> None:
        """Weights, classes or shares of these may be others; what is taken back first makes room for what is given."""
        for tenant in tenants:
            self._queue.update(tenant.view.name, tenant.view.weight, tenant.view.service_class, 0.0)
        for tenant in tenants:
            view = tenant.view
            try:
                self._queue.update(view.name, view.weight, view.service_class, view.min_share)
            except ValueError as e:  # the daemon sees to it that all of them are at most 1 together
                _log.error("no such minimum share", tenant=view.name, why=str(e))

    def remove(self, name: str) -> None:
        """The tenant is gone, or takes no turns here any more; what it runs ends on nobody's account."""
        tenant = self._tenants.pop(name)
        self._woken.discard(name)
        self._queue.remove(name)
        own = [batch for batch in (*self._running, *self._overran) if batch.tenant is tenant]
        for batch in [*own, *self._parked.pop(name, ())]:
            batch.charged = False  # the queue has forgotten it, also where its tenant comes back
            batch.began_ns = batch.began_ns or self._clock()
        if self._next is not None and self._next.tenant is tenant:
            self._next = None
        if self._turn_ns:
            for slot in tenant.slots:  # those without work, too: the end of their last turn is still in their pages
                if slot.page.state != Turn.FREE:
                    slot.page.free()
                    slot.resume()

    def close(self) -> None:
        """There is no gate any more; whoever is here is removed by and by."""
        self._closed = True

    def measure(self, now_ns: int) -> tuple[int, int, int]:
        """Nanoseconds of gates of this device: all, those in which nobody had a turn, and the part where one waited."""
        idle_ns = 0 if self._running else now_ns - self._free_ns
        return now_ns - self._began_ns, self.idle_ns + idle_ns, self.gaps_ns

    def list_under_way(self, now_ns: int) -> Iterator[tuple[Line, int]]:
        """What runs, and what the turn that it has took so far: it is added to its line's when the turn ends."""
        for batch in (*self._running, *self._overran):
            yield batch.line, now_ns - batch.began_ns

    def inherit(self, slot: SlotLink) -> None:
        """A slot that had a turn of the router before this one: until it is heard of, nobody else gets one."""
        if not self._turn_ns:
            slot.page.free()
            return
        slot.page.revoke()
        self._heirs.add(slot)
        self._heirs_until_ns = self._clock() + self._hard_ns
        self._watch()

    def disinherit(self, slot: SlotLink) -> None:
        """It is back, or gone."""
        if slot in self._heirs:
            self._heirs.discard(slot)
            self._take_turns()

    def lose(self, slot: SlotLink) -> None:
        """Its worker hung up: what it runs has no turn any more, what it was sent ahead gets none."""
        self._heirs.discard(slot)
        for batch in [batch for batch in self._running if batch.slot is slot]:
            self._take_away(batch, self._clock())
        for name in list(self._parked):
            self._keep_parked(name, lambda batch: batch.slot is not slot)
        self._take_turns()

    # --- turns -----------------------------------------------------------------------------------------------------

    def pump(self, tenant: Tenant) -> None:
        """Something changed for this tenant: let run what may."""
        if self._is_alone(tenant):
            self._rest(tenant.view.name)
            while len(self._running) < self.device.parallel and self._let(tenant):
                pass
            return
        if self._note(tenant):
            self._press(tenant)
        self._take_turns()

    def release(self, batch: Batch, now_ns: int) -> int:
        """A batch is done: its turn ends, and the next begins. Gives what it took in all; ``settle`` comes next."""
        self._stop(batch, now_ns)
        self._unpark(batch)
        self._pass_on(now_ns)
        return batch.spent_ns

    def settle(self, batch: Batch, now_ns: int) -> None:
        """Charge what it took since it was charged last. ``pump`` comes next."""
        name = batch.tenant.view.name
        if batch.charged and batch.tenant.gate is self:
            self._queue.settle(name, batch.estimate_ns, batch.spent_ns - batch.charged_ns, now_ns)
        batch.charged = False
        batch.charged_ns = batch.spent_ns
        if batch.tenant.gate is not self:
            self._take_turns()  # nobody is pumped here for one that has left

    def take_back(self, slot: SlotLink, *, done: bool) -> bool:
        """The worker of *slot* gives its turn back: its batch is *done* and to be answered, or waits for another.

        False when it has none, or yields before its time. It is woken then: it may have been told otherwise just now.
        """
        now_ns = self._clock()
        batch = next((batch for batch in (*self._running, *self._overran) if batch.slot is slot), None)
        if batch is None or not (done or slot.page.is_over(now_ns)):
            slot.resume()
            return False
        self._stop(batch, now_ns)
        if done:
            batch.ended_ns = now_ns
            self._pass_on(now_ns)
            self.settle(batch, now_ns)
            # Who is next after that is found out when its answer comes: until then its worker looks busy, and its
            # tenant would be passed over each time.
            if len(self._running) < self.device.parallel:
                self.pump(batch.tenant)
            return True
        # First: what was sent behind it to the same worker comes after it.
        self._parked.setdefault(batch.tenant.view.name, []).insert(0, batch)
        self._next = None  # who was to be next did not know of this one: it may be its turn again
        self.settle(batch, now_ns)
        self.pump(batch.tenant)
        return True

    def _pass_on(self, now_ns: int) -> None:
        """Begin the next turn, if somebody waits for it at a worker."""
        following = self._next
        if following is not None and len(self._running) < self.device.parallel and not self._is_busy(following.slot):
            self._resume(following, now_ns)

    def _is_alone(self, tenant: Tenant) -> bool:
        """Whether nobody else waits or runs."""
        return (
            not self._heirs
            and self._woken <= {tenant.view.name}
            and all(batch.tenant is tenant for batch in self._running)
        )

    def _note(self, tenant: Tenant, *, waits: bool = False) -> bool:
        """Whether the tenant waits, as it did not before."""
        name = tenant.view.name
        if not waits and not tenant.waiting and name not in self._parked:
            self._rest(name)
        elif name not in self._woken:
            if not self._woken:
                self._woken_ns = self._clock()
            self._woken.add(name)
            self._queue.wake(name)
            return True
        return False

    def _rest(self, name: str) -> None:
        if name in self._woken:
            self._woken.discard(name)
            self._queue.rest(name)

    def _press(self, newcomer: Tenant) -> None:
        """Somebody waits who did not: who runs alone has a turn from now on, and a lower class yields at once."""
        self._next = None  # the newcomer may go before it
        now_ns = self._clock()
        level = _CLASSES[newcomer.view.service_class]
        for batch in self._running:
            batch.pressed_ns = batch.pressed_ns or now_ns
            if batch.tenant.gate is not self:
                continue  # it takes no turns here any more, and pays for none
            if not batch.charged:
                batch.charged_ns = batch.ran_ns(now_ns)  # until now it took nothing from anybody
                self._note(batch.tenant, waits=True)
                self._charge(batch, now_ns)
            if self._turn_ns:
                is_lower = level < _CLASSES[batch.tenant.view.service_class]
                batch.slot.page.end_by(now_ns if is_lower else now_ns + self._turn_ns)

    def _take_turns(self) -> None:
        """Begin turns while there are any to be had, and find out who is next."""
        stuck: set[str] = set()  # they wait for company or for a worker
        while self._woken and not self._heirs and not self._closed:
            is_full = len(self._running) >= self.device.parallel
            if is_full and (self._next is not None or not self._turn_ns):
                return
            name = self._queue.pick(self._clock(), exclude=stuck)
            if name is None:
                return
            tenant = self._tenants[name]
            if not (self._send_ahead(tenant) if is_full else self._let(tenant)):
                stuck.add(name)
            self._note(tenant)

    def _let(self, tenant: Tenant) -> bool:
        """Give the tenant's next batch a turn, if it has one that can go."""
        now_ns = self._clock()
        parked = self._parked.get(tenant.view.name)
        if parked:
            batch = next((batch for batch in parked if not self._is_busy(batch.slot)), None)
            if batch is not None:
                self._resume(batch, now_ns)
            return batch is not None
        batch = self._form(tenant)
        if batch is None:
            return False
        self._open(batch, now_ns)
        batch.slot.send_batch(batch, now_ns)
        self._book(batch, now_ns)
        return True

    def _send_ahead(self, tenant: Tenant) -> bool:
        """Have the tenant's next batch at its worker, to be the next to run, if it has one that can go."""
        parked = self._parked.get(tenant.view.name)
        batch = parked[0] if parked else self._form(tenant, behind=self._is_all_ours(tenant))
        if batch is None:
            return False
        if not parked:
            if not any(each.slot is batch.slot for each in self._running):
                batch.slot.page.revoke()
            self._parked[tenant.view.name] = [batch]  # first: the slot may be lost by sending, and all that is there
            batch.slot.send_batch(batch, self._clock())
            if batch.slot.lost:
                return False
        self._next = batch
        return True

    def _is_busy(self, slot: SlotLink) -> bool:
        """Whether its worker is at another batch yet, which would take a turn that begins now for its own."""
        return any(batch.slot is slot for batch in (*self._running, *self._overran))

    def _is_all_ours(self, tenant: Tenant) -> bool:
        """Whether workers have nothing of it but what has a turn here: all else may end in the turn of what follows."""
        ours = sum(batch.tenant is tenant for batch in self._running)
        return ours == sum(slot.batches for slot in tenant.slots if not slot.lost)

    def _form(self, tenant: Tenant, *, behind: bool = False) -> Batch | None:
        """Take its next batch out of its line; with *behind* also for a worker that has one already."""
        if self.device.strict and any(batch.tenant is tenant for batch in self._overran):
            return None  # its slot is about to be ended
        batch = self._form_next(tenant, 1 + behind)
        if batch is not None:
            batch.gate = self
        return batch

    def _resume(self, batch: Batch, now_ns: int) -> None:
        """The turn of one that is at its worker already."""
        self._open(batch, now_ns)
        batch.slot.resume()
        self._unpark(batch)
        self._book(batch, now_ns)

    def _open(self, batch: Batch, now_ns: int) -> None:
        """Begin a turn. Its page says so before the worker is told."""
        name = batch.tenant.view.name
        is_wanted = not self._woken <= {name}  # by others
        # What was sent behind it must not begin by itself, as it might where nobody is asked to wait.
        if self._turn_ns and (is_wanted or any(each is not batch for each in self._parked.get(name, ()))):
            batch.slot.page.grant(now_ns + self._turn_ns)
        elif self._turn_ns:
            batch.slot.page.free()
        if not self._running:
            self.idle_ns += now_ns - self._free_ns
            if self._woken:
                self.gaps_ns += now_ns - max(self._free_ns, self._woken_ns)
        self._running[batch] = None
        batch.began_ns = now_ns
        batch.pressed_ns = now_ns if is_wanted or not self.device.strict else 0

    def _book(self, batch: Batch, now_ns: int) -> None:
        """What can be done once it runs."""
        if batch.tenant.view.name in self._woken:
            self._charge(batch, now_ns)
        self._watch()

    def _charge(self, batch: Batch, now_ns: int) -> None:
        """Its tenant, which waits, pays from now on, at first as was estimated."""
        batch.estimate_ns = max(0, batch.line.cost_ns * len(batch.requests) - batch.ran_ns(now_ns))
        batch.charged = True
        self._queue.start(batch.tenant.view.name, batch.estimate_ns, now_ns)
        self._note(batch.tenant)

    def _stop(self, batch: Batch, now_ns: int) -> None:
        """What it runs is over, with a turn or without."""
        if batch.began_ns:
            took_ns = now_ns - batch.began_ns
            batch.spent_ns += took_ns
            batch.line.turns_ns += took_ns
            batch.began_ns = 0
        if batch in self._running:
            self._close_turn(batch, now_ns)
        elif batch in self._overran:
            del self._overran[batch]
            batch.slot.overran = ""  # what it does next is not that
        else:
            return
        if self._turn_ns and batch.tenant.gate is self:
            batch.slot.page.revoke()

    def _close_turn(self, batch: Batch, now_ns: int) -> None:
        del self._running[batch]
        if not self._running:
            self._free_ns = now_ns

    def _take_away(self, batch: Batch, now_ns: int) -> None:
        """Its turn is over; it runs on, and is charged for it. It is to yield yet, and its page says so by its time."""
        self._close_turn(batch, now_ns)
        self._overran[batch] = None

    def _unpark(self, batch: Batch) -> None:
        if self._next is batch:
            self._next = None
        if batch in self._parked.get(batch.tenant.view.name, ()):
            self._keep_parked(batch.tenant.view.name, lambda each: each is not batch)

    def _keep_parked(self, name: str, is_kept: Callable[[Batch], bool]) -> None:
        if self._next is not None and not is_kept(self._next):
            self._next = None
        kept = [batch for batch in self._parked[name] if is_kept(batch)]
        if kept:
            self._parked[name] = kept
        else:
            del self._parked[name]

    # --- who keeps it for too long ---------------------------------------------------------------------------------

    def _is_kept_from_others(self, batch: Batch) -> bool:
        """Whether somebody could run instead of it: who waits for a worker, or for its slot's end, could not."""
        hung = {each.tenant.view.name for each in self._overran} if self.device.strict else set()
        others = self._woken - hung - {batch.tenant.view.name}
        waiting = [line for name in others for line in self._tenants[name].waiting]
        return not others.isdisjoint(self._parked) or any(not slot.batches for line in waiting for slot in line.slots)

    def _watch(self) -> None:
        if not self._watching:
            self._watching = True
            self._loop.later(_LOOK_S, self._look)

    def _look(self) -> None:
        self._watching = False
        if self._closed:
            return
        now_ns = self._clock()
        if self._heirs and now_ns >= self._heirs_until_ns:
            self._heirs.clear()
        for batch in list(self._running):
            if not self._is_kept_from_others(batch):
                batch.pressed_ns = batch.pressed_ns if not self.device.strict else 0
            elif not batch.pressed_ns:
                batch.pressed_ns = now_ns
            elif now_ns - batch.pressed_ns >= self._hard_ns:
                self._take_away(batch, now_ns)
                if self.device.strict and batch.tenant.gate is self:
                    self._on_overrun(batch)
        self._take_turns()
        if self._running or self._heirs:
            self._watch()
