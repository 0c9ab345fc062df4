"""How long to wait before a process is started again. Pure: the clock is the caller's."""

from typing import Final

_FIRST_S: Final = 0.1
_MOST_S: Final = 5.0
# A process that lived this long was well; what ends it then is a new story.
_WELL_S: Final = 10.0


class Backoff:
    """0 s, then 0.1 s doubled up to 5 s; from the beginning again after a life of 10 s.

    The first restart waits for nothing: a crash-only process that was killed is as good as new, and while the router
    is away every request waits. What keeps dying must not burn a core.
    """

    def __init__(self) -> None:
        self.failures = 0

    def next_delay(self, lived_s: float) -> float:
        """Seconds to wait after a life of *lived_s* seconds."""
        if lived_s >= _WELL_S:
            self.failures = 0
        self.failures += 1
        if self.failures == 1:
            return 0.0
        return min(_MOST_S, _FIRST_S * 2.0 ** (self.failures - 2))
