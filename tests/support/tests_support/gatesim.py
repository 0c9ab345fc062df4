"""A device in turns without processes: real gates, lease pages and workers' turns, and a clock that tests move.

What the router does around a gate (lines, slots, answers) is done here in a few lines each. Everything is a step that
somebody else may come before: a packet lies in its socket until it is read, and a worker stops between any two looks
at its page.
"""

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Literal

from bedsit.ipc.errors import BedsitError
from bedsit.ipc.leasepage import LeasePage, LeaseView, Turn
from bedsit.ipc.slot import Word
from bedsit.ipc.snapshot import DeviceView
from bedsit.sandbox.worker.turns import Turns
from bedsit.supervisor.router.gate import Gate
from bedsit.supervisor.router.requests import Batch

MS = 1_000_000
TURN_MS, HARD_MS = 10.0, 100.0

State = Literal["idle", "prepared", "running", "yielding", "ended", "dead"]


class Clock:
    """Nanoseconds, and the timers of a loop."""

    def __init__(self) -> None:
        self.now_ns = 1000 * MS
        self._timers: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def __call__(self) -> int:
        return self.now_ns

    def later(self, delay_s: float, callback: Callable[[], None]) -> None:
        """As the router's loop has it."""
        self._timers.append((self.now_ns + int(delay_s * 1e9), next(self._order), callback))

    def forget(self) -> None:
        """Nobody is there to be called any more."""
        self._timers.clear()

    def is_due(self) -> bool:
        return any(at_ns <= self.now_ns for at_ns, _, _ in self._timers)

    def ring(self) -> None:
        """Call what is due, the oldest first."""
        for entry in sorted(entry for entry in self._timers if entry[0] <= self.now_ns):
            self._timers.remove(entry)
            entry[2]()


@dataclass(eq=False)
class Line:
    """What a gate asks of a line, with what it measures."""

    owner: "Tenant"
    cost_ns: int = 0
    turns_ns: int = 0

    @property
    def slots(self) -> "list[Slot]":
        return [slot for slot in self.owner.slots if not slot.lost and not slot.is_away]


@dataclass(frozen=True)
class View:
    """A tenant's terms."""

    name: str
    weight: int = 100
    service_class: Any = "interactive"
    min_share: float = 0.0


@dataclass(frozen=True)
class Work:
    """A request: it takes *cost_ns*, and can yield each *step_ns* (0: never)."""

    tenant: Any
    cost_ns: int
    step_ns: int = 0

    @property
    def session(self) -> "Work":
        return self


@dataclass(eq=False)
class Tenant:
    """A tenant with its queue and slots."""

    view: View
    queue: deque[Work] = field(default_factory=deque)
    slots: list["Slot"] = field(default_factory=list)
    gate: Gate | None = None
    answered: int = 0

    def __post_init__(self) -> None:
        self.line = Line(self)

    @property
    def waiting(self) -> list[Line]:
        return [self.line] if self.queue else []


class Slot:
    """The router's end of a slot and, behind two sockets, its worker."""

    def __init__(self, tenant: Tenant, path: Path, clock: Clock) -> None:
        self.tenant, self.path, self.clock = tenant, path, clock
        self.page = LeasePage(path)
        self.batches = 0
        self.in_flight: list[Batch] = []
        self.overran = ""
        self.lost = self.is_away = False
        self.inbound: deque[Batch | None] = deque()  # None is a note to look at the page
        self.outbound: deque[Batch | tuple[Word, int]] = deque()  # an answer, or the epoch that is given back
        self.worker: Worker
        self.on_send: Callable[[], None] = lambda: None

    def send_batch(self, batch: Batch, _now_ns: int) -> None:
        self.batches += 1
        self.in_flight.append(batch)
        self.inbound.append(batch)
        self.on_send()

    def resume(self) -> None:
        self.inbound.append(None)


class Blocked(Exception):
    """There is nothing to be heard now."""


class Worker:
    """One that means well; ``step`` goes on to where somebody else may act."""

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.state: State = "idle"
        self.batch: Batch | None = None
        self.left_ns = self.until_step_ns = 0
        self.inbox: deque[Batch] = deque()
        self.router_left = self.is_blocked = False
        self.turns = Turns(LeaseView.open(str(slot.path)), self._hear, self._say, slot.clock, lambda: True)

    def _hear(self) -> bool:
        if self.router_left:
            self.router_left = False
            self.inbox.clear()
            self.slot.is_away = False
            return True
        if not self.slot.inbound:
            self.is_blocked = True
            raise Blocked
        packet = self.slot.inbound.popleft()
        if packet is not None:
            self.inbox.append(packet)
        return False

    def _say(self, word: Word, epoch: int) -> None:
        if not self.router_left:
            self.slot.outbound.append((word, epoch))

    def can_step(self) -> bool:
        """Whether it is not blocked: whatever its page says, one that is looks again when a packet comes."""
        return self.state != "dead" and (not self.is_blocked or bool(self.slot.inbound) or self.router_left)

    def step(self, rng: Random) -> None:
        """One look at the page, one packet, or some work."""
        was_blocked, self.is_blocked = self.is_blocked, False
        with contextlib.suppress(Blocked):
            if was_blocked and self._hear() and self.state in ("prepared", "yielding"):
                self.state = "idle"  # nobody wants what it has
            else:
                getattr(self, f"_when_{self.state}")(rng)

    def _when_idle(self, _rng: Random) -> None:
        while not self.inbox:
            self._hear()
        self.batch = self.inbox.popleft()
        work = self.batch.requests[0]
        self.left_ns, self.until_step_ns = work.cost_ns, work.step_ns  # type: ignore[attr-defined]
        self.state = "prepared"

    def _when_prepared(self, _rng: Random) -> None:
        self.state = "running" if self.turns.begin() else "idle"

    def _when_running(self, rng: Random) -> None:
        if not self.left_ns:
            self.turns.end()
            self.state = "ended"
            return
        passed_ns = min(self.left_ns, rng.choice((MS // 10, MS, 5 * MS)))
        self.slot.clock.now_ns += passed_ns
        self.left_ns -= passed_ns
        if self.until_step_ns:
            self.state = "yielding"
            self._guard(self.turns.yield_point)

    def _when_yielding(self, _rng: Random) -> None:
        self._guard(self._wait)

    def _wait(self) -> None:
        if not self.turns._wait():
            raise BedsitError("gone")

    def _guard(self, look: Callable[[], None]) -> None:
        try:
            look()
        except BedsitError:  # the router went away, and nobody wants the result
            self.state = "idle"
        else:
            self.state = "running"

    def _when_ended(self, _rng: Random) -> None:
        if not self.router_left and self.batch is not None:
            self.slot.outbound.append(self.batch)
        self.state, self.batch = "idle", None


class Liar(Worker):
    """One that does not: it answers what it likes when it likes, and yields what it has or has not."""

    def can_step(self) -> bool:
        return self.state != "dead" and len(self.slot.outbound) < 4

    def step(self, rng: Random) -> None:
        while self.slot.inbound:
            if (packet := self.slot.inbound.popleft()) is not None:
                self.inbox.append(packet)
        what = rng.random()
        if what < 0.3 and self.inbox:
            at = rng.randrange(len(self.inbox))
            self.slot.outbound.append(self.inbox[at])
            del self.inbox[at]
        elif what < 0.5:
            word = rng.choice((Word.YIELD, Word.END))
            self.slot.outbound.append((word, self.slot.page.epoch + rng.choice((-1, 0, 0, 0, 1))))
        self.router_left = self.slot.is_away = False


class Box:
    """The router's part around gates."""

    def __init__(self, folder: Path, devices: list[DeviceView], seed: int = 0) -> None:
        self.folder = folder
        self.clock = Clock()
        self.rng = Random(seed)
        self.tenants: dict[str, Tenant] = {}
        self.slots: list[Slot] = []
        self._made: list[Slot] = []
        self.gates = {device.name: self._make_gate(device) for device in devices}
        self.overran: list[Batch] = []
        self.overruns = 0
        self.strangers: set[Batch] = set()  # under way when their tenants moved
        self.misbehaved = 0
        self._numbers = itertools.count()

    def _make_gate(self, device: DeviceView) -> Gate:
        return Gate(device, self.clock, self._form_next, self._overrun, self.clock)  # type: ignore[arg-type]

    # --- what the daemon does ---------------------------------------------------------------------------------------

    def add(self, name: str, device: str = "", slots: int = 1, **terms: Any) -> Tenant:
        tenant = self.tenants[name] = Tenant(View(name, **terms))
        for _ in range(slots):
            self.add_slot(tenant)
        self.move(tenant, device)
        return tenant

    def add_slot(self, tenant: Tenant, worker: type[Worker] = Worker) -> Slot:
        slot = Slot(tenant, self.folder / f"lease{next(self._numbers)}", self.clock)
        slot.worker = worker(slot)
        self.slots.append(slot)
        self._made.append(slot)
        tenant.slots.append(slot)
        return slot

    def move(self, tenant: Tenant, device: str) -> None:
        """As ``Dispatch.update`` does."""
        gate = self.gates.get(device)
        if tenant.gate is not gate:
            self.strangers |= {batch for slot in tenant.slots for batch in slot.in_flight}
            if tenant.gate is not None:
                tenant.gate.remove(tenant.view.name)
            if gate is not None:
                gate.add(tenant)  # type: ignore[arg-type]
            tenant.gate = gate
        if gate is not None:
            gate.update([tenant])  # type: ignore[list-item]
        self.pump_all()

    def reopen(self, name: str) -> None:
        """The gate goes, and all that are at it, and another one comes."""
        device = self.gates[name].device
        self.gates.pop(name).close()
        gone = [tenant for tenant in self.tenants.values() if tenant.gate is not None]
        for tenant in [tenant for tenant in gone if tenant.gate not in self.gates.values()]:
            self.move(tenant, "")
        self.gates[name] = self._make_gate(device)

    def lose(self, slot: Slot) -> None:
        """Its worker hangs up."""
        if not slot.lost:
            slot.lost, slot.worker.state = True, "dead"
            slot.inbound.clear()
            slot.outbound.clear()
            if slot.tenant.gate is not None:
                slot.tenant.gate.lose(slot)  # type: ignore[arg-type]

    def bury(self, slot: Slot) -> None:
        """The daemon says that it is gone: what it had is tried again."""
        slot.worker.state = "dead"
        slot.lost = True
        self.slots.remove(slot)
        slot.tenant.slots.remove(slot)
        if slot.tenant.gate is not None:
            slot.tenant.gate.disinherit(slot)  # type: ignore[arg-type]
        slot.page.close()
        orphans, slot.in_flight = slot.in_flight, []
        for batch in orphans:
            self._settle(batch)
        slot.tenant.queue.extendleft(batch.requests[0] for batch in reversed(orphans))  # type: ignore[misc]
        self.pump_all()

    def end_overrun(self) -> None:
        """The daemon ends the slots of those that kept a device for too long, and gives them others."""
        for batch in self.overran:
            if batch.slot in self.slots:
                self.bury(batch.slot)
                self.add_slot(batch.tenant)
                self.pump_all()
        self.overran.clear()

    def restart(self) -> None:
        """Another router finds the pages as they are; nothing else of the old one is left."""
        self.clock.forget()
        devices = [gate.device for gate in self.gates.values()]
        self.gates = {device.name: self._make_gate(device) for device in devices}
        for tenant in self.tenants.values():
            device, tenant.gate = tenant.gate.device.name if tenant.gate else "", None
            tenant.queue.clear()
            self.move(tenant, device)
        for slot in self.slots:
            slot.page.close()
            slot.page = LeasePage(slot.path)
            slot.in_flight, slot.batches = [], 0
            slot.inbound.clear()
            slot.outbound.clear()
            slot.worker.router_left = slot.is_away = not slot.lost
            gate = slot.tenant.gate
            if gate is not None and slot.page.state != Turn.WAIT:
                gate.inherit(slot)  # type: ignore[arg-type]
            else:
                slot.page.free()

    # --- what the router does ---------------------------------------------------------------------------------------

    def ask(self, tenant: Tenant, cost_ns: int, step_ns: int = 0) -> None:
        tenant.queue.append(Work(tenant, cost_ns, step_ns))
        self._pump(tenant)

    def hear(self, slot: Slot) -> None:
        """Read one thing that its worker said."""
        said = slot.outbound.popleft()
        if isinstance(said, tuple):
            gate = slot.tenant.gate
            word, epoch = said
            is_known = gate is not None and epoch == slot.page.epoch
            if not is_known or not gate.take_back(slot, done=word == Word.END):  # type: ignore[arg-type, union-attr]
                self.misbehaved += 1
        elif said in slot.in_flight:
            slot.in_flight.remove(said)
            said.tenant.answered += 1
            self._settle(said)
            self._pump(slot.tenant)

    def come_back(self, slot: Slot) -> None:
        """Its worker is heard of by the new router."""
        if slot.tenant.gate is not None:
            slot.tenant.gate.disinherit(slot)  # type: ignore[arg-type]
        self._pump(slot.tenant)

    def pump_all(self) -> None:
        """As after a snapshot."""
        for tenant in self.tenants.values():
            if tenant.waiting:
                self._pump(tenant)

    def _pump(self, tenant: Tenant) -> None:
        if tenant.gate is not None:
            tenant.gate.pump(tenant)  # type: ignore[arg-type]
        else:
            while (batch := self._form_next(tenant, 2)) is not None:
                batch.slot.send_batch(batch, self.clock())

    def _settle(self, batch: Batch) -> None:
        now_ns = self.clock()
        if batch.gate is not None:
            cost_ns = batch.gate.release(batch, now_ns)
            batch.gate.settle(batch, now_ns)
            line = batch.line
            line.cost_ns += (cost_ns - line.cost_ns) // 8 if line.cost_ns else cost_ns
        batch.slot.batches -= 1

    def _form_next(self, tenant: Any, at_once: int) -> Batch | None:
        free = [slot for slot in tenant.line.slots if slot.batches < at_once]
        if not tenant.queue or not free:
            return None
        slot = min(free, key=lambda slot: slot.batches)
        return Batch(tenant.line, slot, [tenant.queue.popleft()])

    def _overrun(self, batch: Batch) -> None:
        self.overran.append(batch)
        self.overruns += 1

    # --- steps ------------------------------------------------------------------------------------------------------

    def list_steps(self, *, computing: bool = True) -> Iterator[Callable[[], None]]:
        """All that can happen next without anybody from outside; without what workers compute, if not *computing*."""
        if self.clock.is_due():
            yield self.clock.ring
        if self.overran:
            yield self.end_overrun
        for slot in self.slots:
            if slot.outbound:
                yield lambda slot=slot: self.hear(slot)  # type: ignore[misc]
            if slot.worker.can_step() and (computing or slot.worker.state != "running"):
                yield lambda slot=slot: self._step(slot)  # type: ignore[misc]

    def step(self, most: int = 1, *, promptly: bool = False) -> bool:
        """Let something happen, *promptly* what takes no time before what does; False when nothing can."""
        for _ in range(most):
            steps = list(self.list_steps(computing=False)) if promptly else []
            steps = steps or list(self.list_steps())
            if not steps:
                return False
            self.rng.choice(steps)()
            self.clock.now_ns += 10_000
        return True

    def _step(self, slot: Slot) -> None:
        was_away = slot.is_away
        slot.worker.step(self.rng)
        if was_away and not slot.is_away:
            self.come_back(slot)

    def list_executing(self, gate: Gate) -> list[Batch]:
        """What workers compute in turns: all that was begun here, but for what had its time and was taken away."""
        return [
            slot.worker.batch
            for slot in self.slots
            if slot.worker.state == "running"
            and slot.tenant.gate is gate
            and slot.worker.batch is not None
            and slot.worker.batch not in self.strangers
            and slot.worker.batch not in gate._overran
            and (not slot.is_away or slot in gate._heirs)  # type: ignore[comparison-overlap]
        ]

    def settle_down(self, steps: int = 20_000) -> None:
        """Nothing new comes: go on until everything is answered. Fails where that does not happen."""
        for _ in range(steps):
            if not self.step():
                if not any(tenant.queue for tenant in self.tenants.values()) and not any(
                    slot.in_flight for slot in self.slots
                ):
                    return
                self.clock.now_ns += 20 * MS  # only a timer can help
                if self.clock.now_ns > 1 << 50:
                    break
        where = [
            (slot.tenant.view.name, slot.worker.state, slot.page.state, len(slot.in_flight)) for slot in self.slots
        ]
        raise AssertionError(f"somebody waits for ever: {where}")

    def close(self) -> None:
        for slot in self._made:
            slot.page.close()
            del slot.worker.turns  # and with them the mapped page, which a cycle would keep
