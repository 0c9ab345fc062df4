"""The generic cell rate algorithm: whether a request may come now, at a rate and with a burst. Pure: no clock.

ITU-T I.371 annex A, as a leaky bucket: a request pours one cell into a bucket of *burst* cells that leaks *per_second*
cells a second. What would run over is refused.

Guarantees (held by tests/supervisor/router/test_gcra.py), exactly:
  - in t seconds at most burst + per_second * t are admitted, and who keeps to the rate is never refused;
  - the wait that a refusal names is the shortest: a nanosecond earlier would be refused, too;
  - a refusal counts for nothing: asking again makes no wait longer.
Assumes: a clock that mostly goes forward. While it stands or steps back nothing leaks, and that is all: after a step
back nobody waits for longer than a full bucket takes.
Why not a token bucket in floats: fractions of tokens round, and so does the hint when to come back. A float rate is a
fraction of two integers, and is taken as one here. Why not counts in windows: twice the burst at their edges.
"""

import math
from typing import Final

_SECOND_NS: Final = 1_000_000_000


class Gcra:
    """At most *per_second* requests a second, and *burst* of them at once; 0 a second is no limit.

    Raises ValueError where the rate is not finite and at least 0, or the burst not at least 1.
    """

    __slots__ = ("_at_ns", "_burst", "_cell", "_leak", "_level")

    def __init__(self, per_second: float, burst: int) -> None:
        self._level = 0  # what is in the bucket, in a unit of which a cell and what leaks in 1 ns are whole numbers
        self._at_ns = 0  # when that was so
        self._cell = _SECOND_NS
        self.update(per_second, burst)

    def admit(self, now_ns: int) -> int:
        """0 for a request that is admitted, and is counted; else how many nanoseconds it is too early."""
        if not self._leak:
            return 0
        if now_ns > self._at_ns:
            self._level = max(0, self._level - (now_ns - self._at_ns) * self._leak)
        self._at_ns = now_ns
        over = self._level + self._cell - self._burst * self._cell
        if over > 0:
            return -(-over // self._leak)
        self._level += self._cell
        return 0

    def update(self, per_second: float, burst: int) -> None:
        """Other limits from now on. Requests that are still owed stay owed, as many as the new burst has room for."""
        if not (math.isfinite(per_second) and per_second >= 0):
            raise ValueError(f"a rate is finite and at least 0, not {per_second}")
        if burst < 1:
            raise ValueError(f"a burst is at least 1, not {burst}")
        self._burst = burst
        self._leak, whole = per_second.as_integer_ratio()
        if self._leak:
            cell, self._cell = self._cell, _SECOND_NS * whole
            self._level = min(-(-self._level * self._cell // cell), self._burst * self._cell)
