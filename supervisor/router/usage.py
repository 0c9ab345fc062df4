"""What was used, by tenant, model and version, and of what no tenant used: counters that only grow while this runs.

Each is told as it stands, not as what came since: whoever adds up what is told can hear it twice, or miss some of it,
and is right again with the next report. *run* says whose counters they are; the next router begins with zeros.
"""

import secrets
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from bedsit.supervisor.router.dispatch import Dispatch
from bedsit.supervisor.router.lines import Line


class Row(NamedTuple):
    """One version of one model of one tenant (by number): *busy_us* of workers, *turns_us* of a device in turns."""

    tenant: int
    model: int
    version: int
    requests: int
    busy_us: int
    turns_us: int


class Usage:
    """Remembers what was told, and lines that are gone until that has been heard."""

    def __init__(self) -> None:
        self.run = secrets.token_hex(8)
        self._told: dict[tuple[int, int, int], Row] = {}
        self._retired: dict[tuple[int, int, int], Line] = {}

    def retire(self, tenant: int, lines: Iterable[Line]) -> None:
        """These are gone; what they ran may still be answered."""
        for line in lines:
            self._retired[tenant, *line.key] = line

    def tell(self, lines: Iterable[tuple[int, Line]], dispatch: Dispatch, now_ns: int, *, anew: bool) -> Any:
        """What has changed since it was told last, or with *anew* all of it, as a message to the daemon.

        That it is asked for again, and not *anew*, says that the last answer was heard.
        """
        under_way: Counter[Line] = Counter()
        for gate in dispatch.gates:
            for line, took_ns in gate.list_under_way(now_ns):
                under_way[line] += took_ns
        rows = []
        for place, line in [*(((tenant, *line.key), line) for tenant, line in lines), *self._retired.items()]:
            row = Row(*place, line.requests_total, line.busy_ns // 1000, (line.turns_ns + under_way[line]) // 1000)
            if anew or self._told.get(place) != row:
                rows.append(row)
                self._told[place] = row
            elif place in self._retired and not line.in_flight:
                del self._retired[place], self._told[place]
        devices = [(name, *(part // 1000 for part in parts)) for name, parts in dispatch.measure(now_ns).items()]
        return {"op": "usage", "run": self.run, "rows": rows, "devices": devices}
