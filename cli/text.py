"""Text for people: what may be printed, and quantities with their units."""

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
_QUANTITY: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


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
    if number is None or unit.lower() not in known:
        raise error("input.invalid", f"{text!r} is not a size", "write a number and a unit: 512MiB, 2GiB")
    return round(number * known[unit.lower()])


def parse_duration(text: str) -> float:
    """Seconds from ``30s``. Raises ``input.invalid``: a number without a unit is one."""
    number, unit = _split(text)
    if number is None or unit not in _SECONDS:
        raise error("input.invalid", f"{text!r} is not a duration", "write a number and a unit: 500ms, 30s, 2m")
    return number * _SECONDS[unit]


def _split(text: str) -> tuple[float | None, str]:
    match = _QUANTITY.fullmatch(text.strip())
    return (float(match[1]), match[2]) if match else (None, "")


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
