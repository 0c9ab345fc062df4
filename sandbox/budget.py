"""A bounded rate: so many at once, so many a second from then on."""

import time


class Budget:
    """A token bucket of *burst* tokens that fills with *per_s* tokens a second."""

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._tokens = burst
        self._at = time.monotonic()

    def has(self, count: float) -> bool:
        """Whether *count* tokens are there now."""
        now = time.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_s)
        self._at = now
        return self._tokens >= count

    def take(self, count: float) -> bool:
        """Take *count* tokens if they are there, else none."""
        if not self.has(count):
            return False
        self._tokens -= count
        return True

    def wait_s(self, count: float) -> float:
        """Seconds until *count* tokens are there, if nobody takes any."""
        return 0.0 if self.has(count) else (count - self._tokens) / self._per_s
