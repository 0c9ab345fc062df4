"""Rows as lines of text: no box drawing, numbers to the right, units in the header. Pure: prints nothing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bedsit.cli.text import measure_width, neutralise

Row = Mapping[str, Any]
_GAP: Final = "  "
_RED, _GREEN, _YELLOW, _DIM = "31", "32", "33", "2"
# Words only: whatever is coloured says the same without colour.
_COLOURS: Final[Mapping[str, str]] = {
    "running": _GREEN,
    "serving": _GREEN,
    "connected": _GREEN,
    "ok": _GREEN,
    "on": _GREEN,
    "parked": _DIM,
    "starting": _YELLOW,
    "building": _YELLOW,
    "loading": _YELLOW,
    "draining": _YELLOW,
    "dying": _YELLOW,
    "stopped": _YELLOW,
    "off": _YELLOW,
    "unknown": _YELLOW,
    "missing": _RED,
    "degraded": _RED,
    "failed": _RED,
    "lost": _RED,
    "blank": _DIM,
    "empty": _DIM,
    "optional": _DIM,
}


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its header with the unit, and the text of a row's cell (``None`` is printed as ``-``)."""

    header: str
    cell: Callable[[Row], object]
    right: bool = False


def field(header: str, key: str, *, right: bool = False) -> Column:
    """The column of a plain field."""
    return Column(header, lambda row: row.get(key), right)


def layout(rows: Sequence[Row], columns: Sequence[Column], *, width: int | None, colour: bool) -> list[str]:
    """Header and rows. With a terminal *width* aligned and cut to it; without one tab-separated and whole."""
    head = [c.header for c in columns]
    body = [[_text(c.cell(row)) for c in columns] for row in rows]
    if width is None:
        return ["\t".join(line) for line in [head, *body]]
    widths = [max(map(measure_width, cells)) for cells in zip(head, *body, strict=True)]
    lines = []
    for number, cells in enumerate([head, *body]):
        painted = colour and number > 0
        lines.append(_line(cells, columns, widths, width, painted=painted))
    return lines


def layout_record(fields: Sequence[tuple[str, object]], *, aligned: bool, colour: bool) -> list[str]:
    """One line per field: name, value."""
    if not aligned:
        return [f"{name}\t{_text(value)}" for name, value in fields]
    widest = max((len(name) for name, _ in fields), default=0)
    return [f"{name:<{widest}}{_GAP}{paint(_text(value), colour=colour)}" for name, value in fields]


def paint(text: str, *, colour: bool) -> str:
    """*text* in the colour of its first word, if it is a state word and *colour* is on."""
    code = _COLOURS.get(text.split(" ", 1)[0].rstrip(":,")) if colour else None
    return f"\x1b[{code}m{text}\x1b[0m" if code else text


def _line(cells: Sequence[str], columns: Sequence[Column], widths: Sequence[int], width: int, *, painted: bool) -> str:
    parts = []
    used = 0
    for index, (cell, column, wide) in enumerate(zip(cells, columns, widths, strict=True)):
        last = index == len(cells) - 1
        text = _cut(cell, max(8, width - used)) if last else cell
        pad = " " * (wide - measure_width(text))
        text = paint(text, colour=painted)
        parts.append(pad + text if column.right else text + ("" if last else pad))
        used += wide + len(_GAP)
    return _GAP.join(parts).rstrip()


def _cut(text: str, width: int) -> str:
    if measure_width(text) <= width:
        return text
    kept = text[: width - 1]
    while measure_width(kept) > width - 1:
        kept = kept[:-1]
    return kept + "…"


def _text(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return neutralise(str(value))
