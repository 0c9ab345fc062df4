"""Dispatch: which batch goes to which worker now, and what it cost.

Without a gate every worker that has room is given work: the kernel shares the cores, by the tenants' weights. On a
device that has a gate (only so many batches may run there at once) tenants take turns, in the order of the fair queue.
"""

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from bedsit.ipc.snapshot import DeviceView
from bedsit.supervisor.router.gate import Gate
from bedsit.supervisor.router.lines import Line
from bedsit.supervisor.router.loop import Loop
from bedsit.supervisor.router.requests import Batch, Request
from bedsit.supervisor.router.slots import SlotLink
from bedsit.supervisor.router.tenants import Tenant

_HALF: Final = 2
_clock = time.monotonic_ns


class Dispatch:
    """Moves requests from lines to workers.

    *expire* gets each request whose deadline passed while it waited, *overrun* each batch that kept a device too long.
    """

    def __init__(self, loop: Loop, expire: Callable[[Request], None], overrun: Callable[[Batch], None]) -> None:
        self._loop = loop
        self._expire = expire
        self._overrun = overrun
        self._gates: dict[str, Gate] = {}  # by device
        self._past: dict[str, tuple[int, int, int]] = {}  # what gates measured that are closed
        self._tenants: dict[str, Tenant] = {}

    @property
    def gates(self) -> Iterable[Gate]:
        """Those of the devices that tenants take turns on."""
        return self._gates.values()

    def measure(self, now_ns: int) -> dict[str, tuple[int, int, int]]:
        """What ``Gate.measure`` says of each device that tenants take turns on, or took: it never goes back."""
        return self._past | {name: gate.measure(now_ns) for name, gate in self._gates.items()}

    def set_devices(self, devices: Iterable[DeviceView]) -> None:
        """These are what tenants take turns on."""
        wanted = {device.name: device for device in devices}
        for name in self._gates.keys() - wanted.keys():
            gate = self._gates.pop(name)
            self._past[name] = gate.measure(_clock())
            gate.close()
        for name, device in wanted.items():
            there = self._gates.get(name)
            if there is None:
                before = self._past.pop(name, (0, 0, 0))
                self._gates[name] = Gate(device, self._loop, self._form_next, self._overrun, before=before)
            else:
                there.set_device(device)
        self.update(self._tenants.values())

    def add(self, tenant: Tenant) -> None:
        """A tenant that may have work; ``update`` follows."""
        self._tenants[tenant.view.name] = tenant

    def update(self, tenants: Iterable[Tenant]) -> None:
        """Devices, weights, classes or shares of these may be others."""
        at: dict[Gate, list[Tenant]] = {}
        for tenant in tenants:
            gate = self._gates.get(tenant.view.turns_on)
            if tenant.gate is not gate:
                if tenant.gate is not None:
                    tenant.gate.remove(tenant.view.name)
                if gate is not None:
                    gate.add(tenant)
                tenant.gate = gate
            if gate is not None:
                at.setdefault(gate, []).append(tenant)
        for gate, those in at.items():
            gate.update(those)

    def remove(self, tenant: Tenant) -> None:
        """It is gone."""
        self._tenants.pop(tenant.view.name, None)
        if tenant.gate is not None:
            tenant.gate.remove(tenant.view.name)
            tenant.gate = None

    def pump(self, tenant: Tenant) -> None:
        """Dispatch what can be, for this tenant, or for whose turn it is."""
        if tenant.gate is not None:
            tenant.gate.pump(tenant)
        elif tenant.waiting:
            while (batch := self._form_next(tenant, tenant.max_inflight)) is not None:
                batch.slot.send_batch(batch, _clock())
        if tenant.held_off and tenant.queued * _HALF <= tenant.queue_max:
            tenant.held_off = False
            tenant.ingress.resume()

    def send_now(self, tenant: Tenant, request: Request) -> bool:
        """Dispatch a request that has just come, if nothing is before it and a worker has room; False else.

        What a queue of one and a batch of one would come to, without them.
        """
        line = request.line
        if (
            tenant.queued
            or line.is_batched
            or tenant.gate is not None
            or 0 < tenant.concurrency_max <= tenant.in_flight
            or 0 < line.concurrency_max <= line.in_flight
        ):
            return False
        slot = _pick(line, tenant.max_inflight)
        if slot is None:
            return False
        if slot.batches:
            tenant.crowded = True
        line.in_flight += 1
        tenant.in_flight += 1
        slot.send_one(request, request.arrived_ns)
        return True

    def answered(self, request: Request, slot: SlotLink) -> None:
        """A worker has answered. A batch is charged when it has answered all of it.

        The charge is the time of its turns, else from when the worker was free for it to now, by this process's clock.
        """
        line = request.line
        tenant = request.session.tenant
        line.in_flight -= 1
        tenant.in_flight -= 1
        request.slot = None
        batch = request.batch
        requests = 1
        now_ns = _clock()
        if batch is not None:
            batch.left -= 1
            if batch.left:
                return
            requests = len(batch.requests)
        if batch is not None and batch.gate is not None:
            cost_ns = batch.gate.release(batch, now_ns)
            batch.gate.settle(batch, now_ns)
        else:
            cost_ns = now_ns - max(request.sent_ns, slot.free_ns)
        slot.free_ns = now_ns
        slot.batches -= 1
        line.answered(requests, cost_ns, now_ns)
        tenant.busy_ns += cost_ns

    def abandon(self, orphans: Iterable[Request], slot: SlotLink) -> None:
        """These were in flight at a worker that is gone: what it had of them is charged."""
        for request in orphans:
            self.answered(request, slot)
            request.batch = None

    def _form_next(self, tenant: Tenant, at_once: int) -> Batch | None:
        """Take the tenant's next batch, for a worker that has fewer than *at_once*; None when there is none."""
        for line in _in_order(tenant):
            while line.queued and not line.is_held() and not 0 < tenant.concurrency_max <= tenant.in_flight:
                slot = _pick(line, at_once)
                if slot is None or slot.batches:
                    tenant.crowded = True
                if slot is None or line.is_forming(slot.batches):
                    break
                now_ns = _clock()
                ripe_ns = line.ripe_ns(now_ns, idle=slot.batches == 0)
                if ripe_ns:
                    self._look_later(tenant, line, ripe_ns, now_ns)
                    break
                requests = [request for request in tenant.take(line) if not self._is_late(request, now_ns)]
                if requests:
                    line.in_flight += len(requests)
                    tenant.in_flight += len(requests)
                    return Batch(line, slot, requests)
        return None

    def _is_late(self, request: Request, now_ns: int) -> bool:
        if 0 < request.deadline_ns <= now_ns:
            self._expire(request)
            return True
        return False

    def _look_later(self, tenant: Tenant, line: Line, ripe_ns: int, now_ns: int) -> None:
        if line.looked_for_ns != ripe_ns:
            line.looked_for_ns = ripe_ns
            self._loop.later((ripe_ns - now_ns) / 1e9, partial(self.pump, tenant))


def _in_order(tenant: Tenant) -> Iterable[Line]:
    """Lines with something in them: by the priority of what is first there, then by how long it has waited."""
    if len(tenant.waiting) < _HALF:
        return list(tenant.waiting)
    heads = [(line, head) for line in tenant.waiting if (head := line.head()) is not None]
    heads.sort(key=lambda pair: (-pair[1].priority, pair[1].arrived_ns))
    return [line for line, _ in heads]


def _pick(line: Line, at_once: int) -> SlotLink | None:
    """The worker with the fewest batches, if it has fewer than *at_once*."""
    best = None
    least = at_once
    for slot in line.slots:
        if slot.batches < least:
            best, least = slot, slot.batches
    return best
