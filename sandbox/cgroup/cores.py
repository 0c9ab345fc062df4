"""Sets of cores as the kernel writes them: "0-3,6" (cpuset(7), list format)."""

from pathlib import Path
from typing import Final

ALL: Final = "all"
_ONLINE: Final = Path("/sys/devices/system/cpu/online")
_MOST: Final = 8192  # the most that any kernel is built for


def parse_cores(text: str) -> frozenset[int]:
    """The numbers in *text*. Raises ValueError for anything that is no list of cores."""
    numbers: set[int] = set()
    for part in text.strip().split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"{text!r} is no list of cores; write one like 0-3,6")
        low, high = int(first), int(last or first)
        if not low <= high < _MOST:
            raise ValueError(f"{part!r} is no range of cores")
        numbers.update(range(low, high + 1))
    return frozenset(numbers)


def format_cores(numbers: frozenset[int]) -> str:
    """The shortest list, ascending."""
    parts: list[str] = []
    ordered = sorted(numbers)
    while ordered:
        low = high = ordered.pop(0)
        while ordered and ordered[0] == high + 1:
            high = ordered.pop(0)
        parts.append(str(low) if low == high else f"{low}-{high}")
    return ",".join(parts)


def read_cores(path: Path) -> frozenset[int]:
    """The cores in a control file; none when it is empty. Raises OSError."""
    text = path.read_text(encoding="ascii").strip()
    return parse_cores(text) if text else frozenset()


def find_online() -> frozenset[int]:
    """The cores that this box has now."""
    return read_cores(_ONLINE)
