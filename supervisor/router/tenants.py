"""A tenant in the router: its endpoint, its queue, its models and counters."""

from collections import deque
from pathlib import Path

import zmq

from bedsit.ipc.lane import Port, ZmqPort
from bedsit.ipc.snapshot import ModelView, TenantView
from bedsit.supervisor.router.loop import Callback, Loop
from bedsit.supervisor.router.requests import Request


class Tenant:
    """One tenant's share of the router. *requests_total* and *errors_total* count final answers."""

    def __init__(
        self, view: TenantView, path: Path, context: "zmq.Context[zmq.Socket[bytes]]", loop: Loop, drain: Callback
    ) -> None:
        self.path = path
        self.queue: deque[Request] = deque()
        self.sessions = 0
        self.requests_total = 0
        self.errors_total = 0
        self.received = 0  # packets
        self.drain = drain
        self._loop = loop
        self._context = context
        self.port: Port = self._open()
        self.update(view)

    def _open(self) -> Port:
        port = ZmqPort(self._context, str(self.path))
        self.path.chmod(0o666)  # the token is what lets a client in
        return port

    def reopen(self) -> None:
        """Give back all that this endpoint made the router hold; clients connect again by themselves."""
        self._loop.unwatch(self.port.fileno())
        self.port.close()
        self.port = self._open()
        self.start()

    def start(self) -> None:
        """Begin to read the endpoint."""
        self._loop.watch(self.port.fileno(), self.drain, edge=True)
        self._loop.again(self.drain)

    def update(self, view: TenantView) -> None:
        """Take a new view of the tenant: limits, keys, models."""
        self.view = view
        self.models: dict[int, ModelView] = {m.number: m for m in view.models}
        self.model_names: dict[str, ModelView] = {m.name: m for m in view.models}

    def is_full(self) -> bool:
        """Whether the queue has reached its limit."""
        return len(self.queue) >= self.view.queue_max

    def close(self) -> None:
        """Stop reading and remove the endpoint."""
        self._loop.unwatch(self.port.fileno())
        self.port.close()
        self.path.unlink(missing_ok=True)
