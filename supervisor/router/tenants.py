"""A tenant in the router: where its requests come in, its lines, its slots, its limits and counters."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import zmq

from bedsit.ipc.errors import BedsitError
from bedsit.ipc.manifest import Batch as BatchPolicy
from bedsit.ipc.manifest import decode_manifest
from bedsit.ipc.snapshot import ModelView, TenantView
from bedsit.ipc.zmqlane import ZmqPort
from bedsit.supervisor.router.gcra import Gcra
from bedsit.supervisor.router.ingress import Ingress
from bedsit.supervisor.router.lines import Line
from bedsit.supervisor.router.loop import Loop
from bedsit.supervisor.router.requests import Request

if TYPE_CHECKING:
    from bedsit.supervisor.router.gate import Gate
    from bedsit.supervisor.router.slots import SlotLink

Key = tuple[int, int]  # model number, version


class Tenant:
    """One tenant's share of the router. *requests_total* and *errors_total* count final answers."""

    def __init__(
        self,
        view: TenantView,
        path: Path,
        loop: Loop,
        make_ingress: "Callable[[Tenant], Ingress]",
        drain: "Callable[[Tenant], None]",
    ) -> None:
        self.path = path
        self.slots: list[SlotLink] = []
        self.lines: dict[Key, Line] = {}
        self.waiting: dict[Line, None] = {}  # lines with something in them, the longest there first
        self.sessions = 0
        self.queued = 0
        self.queued_bytes = 0
        self.in_flight = 0
        self.requests_total = 0
        self.errors_total = 0
        self.seen_total = 0  # of those in all, when its activity was asked for
        self.refused_total = 0  # of the errors: for want of room, rate or time
        self.crowded = False  # a request met no worker that was idle, since its activity was asked for
        self.busy_ns = 0  # what its workers were clocked at
        self.received = 0  # packets on the ZeroMQ endpoint
        self.wanted_ns = 0  # since when somebody waits for its first slot
        self.told_ns = 0  # when the daemon was last told of that
        self.waking_ns = 0  # how long that took the last time
        self.held_off = False  # it is not read because its queue was full
        self.gate: Gate | None = None  # of what it takes turns on
        self.port: ZmqPort | None = None
        self._loop = loop
        self._drain = drain
        self.rate = Gcra(view.rate_per_s, view.burst)
        self.ingress = make_ingress(self)
        self.ingress.awake = self._look_at_port
        self.update(view)

    def update(self, view: TenantView) -> None:
        """Take a new view of the tenant: limits, keys, models. Lines of versions that are gone keep what they hold."""
        self.view = view
        self.rated = view.rate_per_s > 0
        self.queue_max = view.queue_max
        self.queue_bytes_max = view.queue_bytes_max
        self.max_inflight = view.max_inflight
        self.concurrency_max = view.concurrency_max
        self.is_open = view.state == "running"
        self.is_shut = view.state in ("stopped", "failed")  # what waits has nothing to wait for
        self.run_max_ns = int(view.run_max_s * 1e9)
        self.model_names: dict[str, ModelView] = {m.name: m for m in view.models}
        self.model_numbers: dict[int, ModelView] = {m.number: m for m in view.models}
        self.rate.update(view.rate_per_s, view.burst)
        known: dict[Key, Line] = {}
        for model in view.models:
            for row in model.versions:
                line = self.lines.get((model.number, row.version))
                policy = _read_policy(row.manifest)
                if line is None:
                    line = Line(model, row.version, policy)
                else:
                    line.update(model, policy)
                line.is_quarantined = row.quarantined
                known[line.key] = line
        self.lines = known
        self.assign_slots()

    def assign_slots(self) -> None:
        """Find out anew which slots serve which line."""
        for line in self.lines.values():
            line.slots = [slot for slot in self.slots if slot.is_ready and line.key in slot.models]

    def count_waking(self, now_ns: int) -> None:
        """Its first slot may be there, if it waits for one: remember how long that took."""
        if self.wanted_ns and any(slot.is_ready for slot in self.slots):
            self.waking_ns = now_ns - self.wanted_ns
            self.wanted_ns = self.told_ns = 0

    def push(self, request: Request, *, first: bool = False) -> None:
        """Let a request wait; *first* where it has waited before."""
        line = request.line
        (line.push_back if first else line.push)(request)
        self.queued += 1
        self.queued_bytes += request.size
        self.waiting[line] = None

    def drop(self, request: Request) -> bool:
        """Take a request out of its line; False when it does not wait."""
        if not request.line.drop(request):
            return False
        self._count_out(request)
        return True

    def take(self, line: Line) -> list[Request]:
        """Take the next batch out of a line: no more than workers may have of this tenant."""
        requests = line.take(self.concurrency_max - self.in_flight if self.concurrency_max else line.max_rows)
        for request in requests:
            self._count_out(request)
        return requests

    def open_port(self, context: "zmq.Context[zmq.Socket[bytes]]") -> None:
        """Have a ZeroMQ endpoint, from the first session on that wants one."""
        if self.port is None:
            self.port = ZmqPort(context, str(self.path))
            self.path.chmod(0o666)  # the token is what lets a client in
            self._loop.watch(self.port.fileno(), self.read_port, edge=True)
            self.look_again()

    def reopen_port(self, context: "zmq.Context[zmq.Socket[bytes]]") -> None:
        """Give back all that the endpoint made the router hold; clients connect again by themselves."""
        self._close_port()
        self.open_port(context)

    def send_zmq(self, token: bytes, packet: bytes) -> bool:
        """Hand a packet to a client on the endpoint; False when it is gone or takes nothing."""
        if self.port is None or not self.port.send(token, packet):
            return False
        self.look_again()
        return True

    def read_port(self) -> None:
        """What the loop calls when something may be there: nothing, at rest."""
        if self.port is not None and not self.ingress.resting:
            self._drain(self)

    def look_again(self) -> None:
        """Read the endpoint in the next turn."""
        self._loop.again(self.read_port)

    def close(self) -> None:
        """Stop reading and remove the endpoint."""
        self.ingress.close()
        self._close_port()

    def _look_at_port(self) -> None:
        if self.port is not None:
            self.look_again()

    def _close_port(self) -> None:
        if self.port is not None:
            self._loop.unwatch(self.port.fileno())
            self.port.close()
            self.port = None
            self.path.unlink(missing_ok=True)

    def _count_out(self, request: Request) -> None:
        self.queued -= 1
        self.queued_bytes -= request.size
        if not request.line.queued:
            self.waiting.pop(request.line, None)


@lru_cache(maxsize=4096)
def _read_policy(manifest: bytes) -> BatchPolicy | None:
    """How requests of a version may be batched; a manifest (it comes from a worker) that is none batches nothing."""
    try:
        return decode_manifest(manifest).batch
    except BedsitError:
        return None
