"""Text for people: what may be printed, and quantities with their units."""

import math
import re
import unicodedata
from datetime import UTC, datetime
from typing import Final

from bedsit.ipc.errors import error

_UNITS: Final = {
    "B": 1,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DAY_S: Final = 86_400.0
_NUMBER: Final = r"[0-9]+(?:\.[0-9]+)?"  # not \d, which takes the digits of every script
_QUANTITY: Final = re.compile(rf"({_NUMBER})\s*([A-Za-z]*)")
_SHARE: Final = re.compile(rf"({_NUMBER})\s*(%?)")
_RATE: Final = re.compile(rf"({_NUMBER})\s*(?:/\s*([smh]))?")
_COUNT: Final = re.compile(r"[0-9]{1,15}")
_MAX_SIZE: Final = 1 << 63


def neutralise(text: str, keep: str = "") -> str:
    r"""Make *text* harmless to a terminal: what is not printable becomes visible as ``\x1b``, except what is in *keep*.

    ``str.isprintable`` is false for control characters (C0, C1), for the invisible and direction-changing ones (Cf),
    line separators, surrogates and unassigned code points: all that can move a cursor, hide text or reorder it.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _escape(c) for c in text)


def _escape(char: str) -> str:
    code = ord(char)
    if char in "\n\r\t":
        return {"\n": r"\n", "\r": r"\r", "\t": r"\t"}[char]
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"  # noqa: PLR2004 - widths


def measure_width(text: str) -> int:
    """How many columns *text* takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def parse_size(text: str) -> int:
    """Bytes from ``512MiB``. Raises ``input.invalid``: a number without a unit is one."""
    number, unit = _split(text)
    known = {name.lower(): factor for name, factor in _UNITS.items()}
    if number is None or unit.lower() not in known or number * known[unit.lower()] >= _MAX_SIZE:
        raise error("input.invalid", f"{text!r} is not a size", "write a number and a unit: 512MiB, 2GiB")
    return round(number * known[unit.lower()])


def parse_duration(text: str) -> float:
    """Seconds from ``30s``. Raises ``input.invalid``: a number without a unit is one."""
    number, unit = _split(text)
    if number is None or unit not in _SECONDS:
        raise error("input.invalid", f"{text!r} is not a duration", "write a number and a unit: 500ms, 30s, 2m")
    return number * _SECONDS[unit]


def parse_span(text: str) -> float:
    """The same, and more than none. Raises ``input.invalid``."""
    seconds = parse_duration(text)
    if not seconds:
        raise error("input.invalid", f"{text!r} is no time at all", "write a number above 0 and a unit: 500ms, 30s, 2m")
    return seconds


def parse_past(text: str) -> float:
    """How far back, in seconds: as a span, and in days (``7d``), too. Raises ``input.invalid``."""
    number, unit = _split(text)
    return number * _DAY_S if number and unit == "d" else parse_span(text)


def parse_count(text: str) -> int:
    """A whole number from 1. Raises ``input.invalid``."""
    match = _COUNT.fullmatch(text.strip())
    if match is None or int(match[0]) == 0:
        raise error("input.invalid", f"{text!r} is not a count", "write a whole number from 1")
    return int(match[0])


def parse_whole(text: str) -> int:
    """A whole number from 0. Raises ``input.invalid``."""
    match = _COUNT.fullmatch(text.strip())
    if match is None:
        raise error("input.invalid", f"{text!r} is not a whole number", "write a whole number from 0")
    return int(match[0])


def parse_share(text: str) -> float:
    """A part of the whole, 0 to 1, from ``0.25`` or ``25%``. Raises ``input.invalid``."""
    match = _SHARE.fullmatch(text.strip())
    share = float(match[1]) / (100 if match[2] else 1) if match else math.inf
    if share > 1:
        raise error("input.invalid", f"{text!r} is not a part of the whole", "write 0 to 1, or 0% to 100%: 0.25, 25%")
    return share


def parse_rate(text: str) -> float:
    """A number a second from ``100``, ``100/s``, ``600/m`` or ``90/h``. Raises ``input.invalid``, also for 0."""
    match = _RATE.fullmatch(text.strip())
    rate = float(match[1]) / _SECONDS[match[2] or "s"] if match else 0.0
    if not 0 < rate < math.inf:
        raise error("input.invalid", f"{text!r} is not a rate", "write a number above 0: 100/s, 600/m")
    return rate


def _split(text: str) -> tuple[float | None, str]:
    match = _QUANTITY.fullmatch(text.strip())
    if match is None or math.isinf(float(match[1])):
        return None, ""
    return float(match[1]), match[2]


def format_size(count: object) -> str:
    """Bytes for people: ``512 MiB``."""
    if not isinstance(count, (int, float)):
        return "-"
    value, unit = float(count), "B"
    for name in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:  # noqa: PLR2004 - one binary step
            break
        value, unit = value / 1024, name
    return f"{value:.4g} {unit}"


def format_rate(per_s: float) -> str:
    """A rate for people, in the unit in which it is at least 1: ``100/s``, ``30/m``."""
    for unit in "sm":
        if per_s * _SECONDS[unit] >= 1:
            return f"{per_s * _SECONDS[unit]:.10g}/{unit}"
    return f"{per_s * _SECONDS['h']:.10g}/h"


def format_share(share: float) -> str:
    """A part for people: ``25%``."""
    return f"{100 * share:.4g}%"


def format_mib(count: object) -> str:
    """Bytes as a number of MiB, for a column that names the unit."""
    return f"{count / (1 << 20):.1f}" if isinstance(count, (int, float)) else "-"


def format_duration(seconds: float) -> str:
    """Seconds for people: ``3 ms``, ``1.5 s``, ``2 m 3 s``, ``5 h 1 m``, ``2 d 4 h``."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:  # noqa: PLR2004 - a minute
        return f"{seconds:.3g} s"
    whole = int(seconds)
    for unit, size, lower, step in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // step} {lower}"
    return f"{whole} s"


def format_age(at: object, now: datetime | None = None) -> str:
    """How long ago an RFC 3339 time was, ``-`` when it is none."""
    if not isinstance(at, str):
        return "-"
    try:
        then = datetime.fromisoformat(at)
    except ValueError:
        return "-"
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    seconds = ((now or datetime.now(UTC)) - then).total_seconds()
    return format_duration(float(int(max(0.0, seconds)))) if seconds >= 1 else "0 s"


def describe_place(place: object) -> str | None:
    """``memory slices 4 to 7``: where a MIG instance lies; None where nobody says."""
    if not isinstance(place, dict):
        return None
    last = place["start"] + place["size"] - 1
    return f"memory slices {place['start']} to {last}" if place["size"] > 1 else f"memory slice {last}"
