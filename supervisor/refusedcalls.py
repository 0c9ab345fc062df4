"""System calls that are on no slot's list, as events with their names: what a newer library tries shows up here."""

from collections.abc import Collection
from typing import Final

from bedsit.sandbox.budget import Budget
from bedsit.sandbox.seccomp import name_call
from bedsit.supervisor.events import Events
from bedsit.supervisor.records import Record

# A slot tells each number once; a worker that starts again and again would still fill the ring.
_EVENTS_PER_S: Final = 1 / 60
_EVENTS_AT_ONCE: Final = 16


class RefusedCalls:
    """Writes `slot.call_refused` at a bounded rate for each of the *tenants* that there are; the rest is not told."""

    def __init__(self, events: Events, tenants: Collection[str]) -> None:
        self._events = events
        self._tenants = tenants
        self._budgets: dict[str, Budget] = {}

    def hear(self, record: Record, number: int) -> None:
        """A process of this slot made the call with this number, and was told that there is no such call."""
        name = record.tenant or ""
        if name not in self._budgets:
            self._budgets = {known: kept for known, kept in self._budgets.items() if known in self._tenants}
            self._budgets[name] = Budget(_EVENTS_PER_S, _EVENTS_AT_ONCE)
        if not self._budgets[name].take(1):
            return
        text = f"{name_call(number)}: not on the list of system calls, answered with ENOSYS"
        self._events.add("slot.call_refused", text, record.tenant, record.slot)
