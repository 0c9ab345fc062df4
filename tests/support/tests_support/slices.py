"""What the kernel says of a thread's slice of time."""

import platform
import re
from pathlib import Path
from typing import Final

#: Linux 6.12 and later take one; before, the call does nothing.
HAS_SLICES: Final = tuple(map(int, re.findall(r"\d+", platform.release())[:2])) >= (6, 12)


def read_slice(thread: int) -> int:
    """In microseconds."""
    for line in Path(f"/proc/{thread}/sched").read_text().splitlines():
        if line.startswith("se.slice"):
            return int(line.partition(":")[2]) // 1000
    raise LookupError(f"the kernel does not say what the slice of {thread} is")
