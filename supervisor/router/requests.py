"""A request inside the router, from admission to its one final answer, and the batch that it goes out in."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bedsit.supervisor.router.gate import Gate
    from bedsit.supervisor.router.lines import Line
    from bedsit.supervisor.router.sessions import Session
    from bedsit.supervisor.router.slots import SlotLink


class Request:
    """What a client asked.

    *size* is what it counts for in a queue. *attempts* counts dispatches; *withdrawn* means that nobody waits for the
    result; *slot*, *rid* and *sent_ns* are set while a worker has it, *batch* too where it did not go alone.
    """

    __slots__ = (
        "arrived_ns",
        "attempts",
        "batch",
        "deadline_ns",
        "id",
        "line",
        "packet",
        "priority",
        "rid",
        "rows",
        "sent_ns",
        "session",
        "size",
        "slot",
        "withdrawn",
    )

    def __init__(
        self,
        session: "Session",
        line: "Line",
        packet: bytes,
        ident: int,
        deadline_ns: int,
        rows: int,
        priority: int,
        arrived_ns: int,
    ) -> None:
        self.session = session
        self.line = line
        self.packet = packet
        self.size = len(packet)
        self.id = ident
        self.deadline_ns = deadline_ns
        self.rows = rows
        self.priority = priority
        self.arrived_ns = arrived_ns
        self.attempts = 0
        self.withdrawn = False
        self.batch: Batch | None = None
        self.slot: SlotLink | None = None
        self.rid = self.sent_ns = 0


class Batch:
    """What was dispatched together, or through the gate: requests of one line, at one slot. One batch is one charge.

    *left* counts requests without an answer. *gate* let it through, if there was one; if *charged*, with *estimate_ns*.
    """

    __slots__ = ("charged", "estimate_ns", "gate", "left", "line", "requests", "slot", "tenant")

    def __init__(self, line: "Line", slot: "SlotLink", requests: list[Request]) -> None:
        self.line = line
        self.slot = slot
        self.requests = requests
        self.left = len(requests)
        self.tenant = requests[0].session.tenant
        self.gate: Gate | None = None
        self.charged = False
        self.estimate_ns = 0
