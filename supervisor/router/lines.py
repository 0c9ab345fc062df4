"""A line: what waits for one version of one model of one tenant, and how batches are made of it.

Pure: no I/O, the clock is passed in. A line knows its queue, its measured cost and its batch policy; who may go next
among tenants is decided elsewhere.

Batches are formed while the workers are busy anyway. Only when a worker is free does waiting cost something, and then
a line waits no longer than its model declares, and only for those who may come back: as many rows as the batch before
had, beside those that waited when it was answered. So a single caller never waits for company that does not come, and
callers in closed loops find each other: two groups that take turns become one.
"""

from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING, Final

from bedsit.ipc.manifest import Batch as BatchPolicy
from bedsit.ipc.snapshot import ModelView
from bedsit.supervisor.router.gcra import Gcra
from bedsit.supervisor.router.requests import Request

if TYPE_CHECKING:
    from bedsit.supervisor.router.slots import SlotLink

_PRIORITIES: Final = 3
_SMOOTHING: Final = 8  # a new measurement counts for one in so many
_ENOUGH: Final = 8  # measurements, before an estimate is acted on
_MARGIN_NS: Final = 5_000_000  # before a deadline: timers are late by milliseconds, and somebody has to be woken twice


class Line:
    """The queue of one (model, version), high priorities first, else in order of arrival."""

    def __init__(self, model: ModelView, version: int, policy: BatchPolicy | None) -> None:
        self.key = (model.number, version)
        self.version = version
        self.rate = Gcra(model.rate_per_s, model.burst)
        self.slots: list[SlotLink] = []  # those that have it loaded and may be given work
        self.queued = 0
        self.queued_bytes = 0
        self.in_flight = 0
        self.cost_ns = 0  # of one request, smoothed
        self.measured = 0
        self.requests_total = 0  # those that a worker has answered
        self.busy_ns = 0  # what workers took for them
        self.turns_ns = 0  # what its batches took of a device, in turns
        self.is_quarantined = False
        self.looked_for_ns = 0  # when somebody will look whether a batch is ripe
        self._queues: tuple[OrderedDict[Request, None], ...] = tuple(OrderedDict() for _ in range(_PRIORITIES))
        self._last_rows = 1  # of the last batch
        self._expected = 1  # rows that the next one should have
        self._free_ns = 0  # when the last one was answered
        self._queued_rows = 0
        self.update(model, policy)

    def update(self, model: ModelView, policy: BatchPolicy | None) -> None:
        """Take a new view of the model."""
        self.model = model
        self.is_default = model.default == self.version
        self.max_rows = policy.max_rows if policy is not None else 1
        self.delay_ns = int(policy.delay_ms * 1e6) if policy is not None else 0
        self.is_batched = policy is not None
        self.concurrency_max = model.concurrency_max
        self.queue_max = model.queue_max
        self.priority = model.priority
        self.rated = model.rate_per_s > 0
        self.rate.update(model.rate_per_s, model.burst)

    def push(self, request: Request) -> None:
        """A request joins at the end."""
        self._queues[request.priority][request] = None
        self.queued += 1
        self.queued_bytes += request.size
        self._queued_rows += request.rows

    def push_back(self, request: Request) -> None:
        """A request that was dispatched in vain is the first again."""
        queue = self._queues[request.priority]
        queue[request] = None
        queue.move_to_end(request, last=False)
        self.queued += 1
        self.queued_bytes += request.size
        self._queued_rows += request.rows

    def drop(self, request: Request) -> bool:
        """Take a request out; False when it is not waiting here."""
        queue = self._queues[request.priority]
        if request not in queue:
            return False
        del queue[request]
        self.queued -= 1
        self.queued_bytes -= request.size
        self._queued_rows -= request.rows
        return True

    def head(self) -> Request | None:
        """The request that is next."""
        for queue in reversed(self._queues):
            if queue:
                return next(iter(queue))
        return None

    def waiting(self) -> Iterator[Request]:
        """Everything that waits, in order."""
        return chain.from_iterable(reversed(self._queues))

    def is_held(self) -> bool:
        """Whether as many requests are at workers as the model allows."""
        return 0 < self.concurrency_max <= self.in_flight

    def is_forming(self, batches: int) -> bool:
        """Whether the next batch should grow on: its worker has so many to run, and it is not full yet.

        A full one is sent ahead, so that the worker need not wait for it; a second one ahead would gain nothing.
        """
        return self.is_batched and batches > 0 and (batches > 1 or self.queued < self.max_rows)

    def ripe_ns(self, now_ns: int, *, idle: bool) -> int:
        """When the next batch may go: 0 for now. *idle*: whether a worker would run it at once."""
        if self.delay_ns == 0 or not idle or self.queued >= self.max_rows:
            return 0
        head = self.head()
        if head is None or self._queued_rows >= min(self._expected, self.max_rows):
            return 0
        at_ns = max(head.arrived_ns, self._free_ns) + self.delay_ns
        for request in self.waiting():
            if request.deadline_ns:
                at_ns = min(at_ns, request.deadline_ns - self.cost_ns - _MARGIN_NS)
        return at_ns if at_ns > now_ns else 0

    def take(self, most: int) -> list[Request]:
        """The next batch: at least one request, at most *most* and ``max_rows`` rows, all of one lane."""
        head = self.head()
        if head is None:
            return []
        self.drop(head)
        taken, rows = [head], head.rows
        if self.max_rows > 1:
            if self.concurrency_max:
                most = min(most, self.concurrency_max - self.in_flight)
            for request in list(islice(self.waiting(), min(most, self.max_rows) - 1)):
                if rows + request.rows > self.max_rows or bool(request.session.token) != bool(head.session.token):
                    break
                self.drop(request)
                taken.append(request)
                rows += request.rows
            self._last_rows = rows
        return taken

    def answered(self, requests: int, cost_ns: int, now_ns: int) -> None:
        """A batch of so many requests took so long, until now."""
        self._expected = self._last_rows + self._queued_rows
        self._free_ns = now_ns
        self.requests_total += requests
        self.busy_ns += cost_ns
        each = cost_ns // requests
        self.cost_ns += (each - self.cost_ns) // _SMOOTHING if self.measured else each
        self.measured += 1

    def count_behind(self) -> int:
        """How many requests wait, here or at a worker for the batch that it is at: those another one would help."""
        return max(0, self.queued + self.in_flight - len(self.slots) * self.max_rows)

    def backlog_ns(self) -> int:
        """How long a request that comes now will wait, 0 where nobody can tell.

        Only for what is ahead of it: a request at an empty line is always let in, so that a wrong estimate is measured
        anew.
        """
        if self.measured < _ENOUGH or not self.slots:
            return 0
        return self.cost_ns * (self.queued + self.in_flight) // len(self.slots)
