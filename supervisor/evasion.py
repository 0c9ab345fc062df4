"""Who computes on shared cores without having a turn. Pure: counters and time are passed in.

A worker that says that it yields and runs on is charged for nothing by the router. But the kernel counts what its slots
take of the cores: what turns do not explain, by far and twice in a row, is work out of turn. Some of it is honest, as
what a worker does between batches, and allowed.

Of GPUs nobody counts so: there a tenant is trusted that takes turns at all.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

#: Part of the time that a tenant may compute out of turn, and how often in a row it may be more.
_ALLOWED: Final = 0.1
_TIMES: Final = 2
_LEAST_US: Final = 2_000_000


@dataclass(frozen=True)
class Count:
    """What a tenant's slots took of the cores so far, and what its turns there came to, in us of one core."""

    cpu_us: int
    turns_us: int
    #: Another set is another count: slots that came or went, or another router.
    of: frozenset[str]


@dataclass
class Evasion:
    """Compares each count with the one before."""

    _before: dict[str, tuple[int, Count]] = field(default_factory=dict)
    _times: dict[str, int] = field(default_factory=dict)

    def judge(self, now_us: int, counts: Mapping[str, Count]) -> dict[str, float]:
        """Tenants that compute out of turn, each with the part of the time in which it did.

        Nothing is said of a time so short that two clocks which are not read at once would matter.
        """
        found: dict[str, float] = {}
        kept: dict[str, tuple[int, Count]] = {}
        for name, count in counts.items():
            at_us, before = self._before.get(name, (now_us, count))
            passed_us = now_us - at_us
            if before.of != count.of or not passed_us:
                kept[name], self._times[name] = (now_us, count), 0
            elif passed_us < _LEAST_US:
                kept[name] = at_us, before
            else:
                kept[name] = now_us, count
                took_us = (count.cpu_us - before.cpu_us) - (count.turns_us - before.turns_us)
                self._times[name] = self._times.get(name, 0) + 1 if took_us > _ALLOWED * passed_us else 0
                if self._times[name] >= _TIMES:
                    self._times[name] = 0
                    found[name] = took_us / passed_us
        self._before = kept
        self._times = {name: times for name, times in self._times.items() if name in counts}
        return found
