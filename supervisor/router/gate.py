"""The gate: only so many batches run at once on this box, and tenants take turns in the order of the fair queue.

Guarantees: a request of a tenant that was idle waits for at most one batch of somebody else, the one that runs; nothing
is sent ahead to a worker. A batch that outlives its lease gives its turn to others while it goes on, and is charged to
the end: who hangs holds up nobody. A tenant that is alone here does not pay for the queue: it is charged from
when somebody else comes, as the queue remembers nothing older than a batch anyway.
"""

import time
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from bedsit.ipc.snapshot import DeviceView
from bedsit.supervisor.router.fairqueue import FairQueue
from bedsit.supervisor.router.loop import Loop
from bedsit.supervisor.router.requests import Batch
from bedsit.supervisor.router.tenants import Tenant

_LOOK_S: Final = 0.05  # how often it is looked for leases that are over
_log = structlog.get_logger("router.gate")


class Gate:
    """Lets the batches of *device* run. *send_next* dispatches a tenant's next one, or gives None."""

    def __init__(
        self,
        device: DeviceView,
        loop: Loop,
        send_next: Callable[[Tenant, int], Batch | None],
    ) -> None:
        self.device = device
        self._loop = loop
        self._tenants: dict[str, Tenant] = {}
        self._send_next = send_next
        self._queue = FairQueue()
        self._woken: set[str] = set()  # tenants that wait, as the queue knows
        self._leased: dict[Batch, int] = {}  # until when, oldest first
        self._closed = False
        self._watching = False

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

    def remove(self, tenant: Tenant) -> None:
        """It is gone; what it runs ends on nobody's account."""
        del self._tenants[tenant.view.name]
        self._woken.discard(tenant.view.name)
        self._queue.remove(tenant.view.name)

    def close(self) -> None:
        """There is no gate any more."""
        self._closed = True
        self._leased.clear()

    def pump(self, tenant: Tenant) -> None:
        """Something changed for this tenant: let run what may."""
        if self._is_alone(tenant):
            while len(self._leased) < self.device.parallel and self._let(tenant) is not None:
                pass
            return
        self._note(tenant)
        self._take_turns()

    def settle(self, batch: Batch, tenant: Tenant, cost_ns: int, now_ns: int) -> None:
        """A batch is done, and cost so much. ``pump`` comes next."""
        self._leased.pop(batch, None)
        if batch.charged and not self._closed and self._tenants.get(tenant.view.name) is tenant:
            self._queue.settle(tenant.view.name, batch.estimate_ns, cost_ns, now_ns)

    def _is_alone(self, tenant: Tenant) -> bool:
        """Whether nobody else waits or runs."""
        return not self._woken and all(batch.tenant is tenant for batch in self._leased)

    def _note(self, tenant: Tenant) -> None:
        name = tenant.view.name
        if tenant.waiting:
            if name not in self._woken:
                self._woken.add(name)
                self._queue.wake(name)
        elif name in self._woken:
            self._woken.discard(name)
            self._queue.rest(name)

    def _take_turns(self) -> None:
        stuck: set[str] = set()  # they wait for company or for a worker
        while self._woken and len(self._leased) < self.device.parallel:
            now_ns = time.monotonic_ns()
            name = self._queue.pick(now_ns, exclude=stuck)
            if name is None:
                return
            tenant = self._tenants[name]
            batch = self._let(tenant)
            if batch is None:
                stuck.add(name)
            else:
                batch.estimate_ns = batch.line.cost_ns * len(batch.requests)
                batch.charged = True
                self._queue.start(name, batch.estimate_ns, now_ns)
            self._note(tenant)

    def _let(self, tenant: Tenant) -> Batch | None:
        """Dispatch the tenant's next batch, with a lease; None when it has none that can go."""
        batch = self._send_next(tenant, 1)
        if batch is not None:
            batch.gate = self
            self._leased[batch] = time.monotonic_ns() + int(self.device.hard_ms * 1e6)
            if not self._watching:
                self._watching = True
                self._loop.later(_LOOK_S, self._end_leases)
        return batch

    def _end_leases(self) -> None:
        self._watching = bool(self._leased) and not self._closed
        if not self._watching:
            return
        now_ns = time.monotonic_ns()
        over = [batch for batch, until_ns in self._leased.items() if until_ns <= now_ns]
        for batch in over:
            del self._leased[batch]
        if over:
            self._take_turns()
        self._loop.later(_LOOK_S, self._end_leases)
