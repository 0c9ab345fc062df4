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
    """What was dispatched together, or through a gate: requests of one line, at one slot. One batch is one charge.

    *left* counts requests without an answer. *gate* is whose turns it takes, if there is one: its present one began at
    *began_ns* (0: it has none), those before took *spent_ns*, of which *charged_ns* are paid; if *charged*, the fair
    queue counts on *estimate_ns* more. Others wait for its turn to end since *pressed_ns* (0: nobody does). Its worker
    said at *ended_ns* that it has run, and is to answer.
    """

    __slots__ = (
        "began_ns",
        "charged",
        "charged_ns",
        "ended_ns",
        "estimate_ns",
        "gate",
        "left",
        "line",
        "pressed_ns",
        "requests",
        "slot",
        "spent_ns",
        "tenant",
    )

    def __init__(self, line: "Line", slot: "SlotLink", requests: list[Request]) -> None:
        self.line = line
        self.slot = slot
        self.requests = requests
        self.left = len(requests)
        self.tenant = requests[0].session.tenant
        self.gate: Gate | None = None
        self.charged = False
        self.began_ns = self.ended_ns = self.pressed_ns = self.spent_ns = self.charged_ns = self.estimate_ns = 0

    def ran_ns(self, now_ns: int) -> int:
        """For how long it has had a turn in all, or has kept its answers back after it."""
        since_ns = self.began_ns or self.ended_ns
        return self.spent_ns + (now_ns - since_ns if since_ns else 0)
