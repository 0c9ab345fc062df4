"""What every decoder owes to hostile bytes: a value, or a refusal of ours that it documents, soon and short."""

import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgpack

from bedsit.ipc.errors import CODES, BedsitError

T = TypeVar("T")

#: Of this thread's own time: other people's load on the machine does not count. Honest inputs take microseconds.
CPU_S: Final = 2.0
#: A message may quote what it refuses, escaped; no more.
_QUOTED: Final = 10


def attempt(read: Callable[[], T], *codes: str, size: int = 1 << 16) -> T | None:
    """What *read* gives for *size* bytes of somebody else's; None where it refuses with one of *codes*."""
    began = time.thread_time()
    value: T | None = None
    try:
        value = read()
    except BedsitError as e:
        check_refusal(e, codes, size)
    spent = time.thread_time() - began
    assert spent < CPU_S, f"{spent:.1f} s for {size} bytes"
    return value


def check_refusal(failure: BedsitError, codes: tuple[str, ...], size: int = 1 << 16) -> None:
    """A refusal has a code that was announced, its class, and a message that can travel and is not longer than told."""
    assert failure.code in codes, f"{failure.code} is not documented: {failure}"
    assert CODES[failure.code] is type(failure)
    told = msgpack.packb(failure.to_wire(), unicode_errors="replace")
    assert len(told) < _QUOTED * size + 2000, f"{len(told)} bytes to refuse {size}"


def count_parts(value: Any) -> int:
    """How many values there are in a decoded one, itself included; however deep it is."""
    parts, waiting = 0, [value]
    while waiting:
        part = waiting.pop()
        parts += 1
        if isinstance(part, dict):
            waiting += part.keys()
            waiting += part.values()
        elif isinstance(part, (list, tuple)):
            waiting += part
    return parts


def same(one: Any, other: Any) -> bool:
    """Whether two decoded values are equal, where NaN equals itself; however deep they are."""
    waiting = [(one, other)]
    while waiting:
        left, right = waiting.pop()
        if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
            if len(left) != len(right):
                return False
            waiting += zip(left, right, strict=True)
        elif isinstance(left, dict) and isinstance(right, dict):
            if left.keys() != right.keys():
                return False
            waiting += [(left[key], right[key]) for key in left]
        elif left != right and not (left != left and right != right):  # noqa: PLR0124 - NaN
            return False
    return True
