"""Two uids per slot out of a reserved range: init's, then the worker's.

A pair goes back only when nothing runs under it any more, and is then the last one to be handed out again, so that a
stale file or message of an old slot has the longest time to be noticed.
"""

from collections import deque

from bedsit.ipc.errors import error


class UidPairs:
    """The range [base, base + count)."""

    def __init__(self, base: int, count: int) -> None:
        self._free = deque(range(base, base + count - count % 2, 2))

    def take(self) -> int:
        """The init uid of a free pair; the worker's is one more. Raises ``pool.empty``."""
        if not self._free:
            raise error("pool.empty", "every uid of the reserved range is in use", "raise uid_count")
        return self._free.popleft()

    def claim(self, init_uid: int) -> bool:
        """Take this very pair. False when it is in use or not of this range."""
        try:
            self._free.remove(init_uid)
        except ValueError:
            return False
        return True

    def give_back(self, init_uid: int) -> None:
        """Nothing runs under this pair any more."""
        self._free.append(init_uid)
