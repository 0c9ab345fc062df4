"""What a check says: rows, and the table of all of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, get_args

#: *seen*: a figure of which nothing was expected.
Verdict = Literal["ok", "differs", "could not", "seen"]
VERDICTS: Final[tuple[Verdict, ...]] = get_args(Verdict)
_HEAD: Final = ("check", "what", "figure", "expectation", "verdict")
_WIDEST: Final = (8, 54, 100, 34, 9)


@dataclass(frozen=True)
class Row:
    """One figure, or why there is none; *data* goes into the report only."""

    what: str
    figure: str
    expect: str = ""
    verdict: Verdict = "seen"
    data: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """For the report."""
        return asdict(self)


def read_row(values: Mapping[str, Any]) -> Row:
    """The row that `Row.as_json` wrote; raises KeyError or ValueError when it did not."""
    if values["verdict"] not in VERDICTS:
        raise ValueError(f"no such verdict: {values['verdict']}")
    return Row(values["what"], values["figure"], values["expect"], values["verdict"], values["data"])


def render_table(checks: Iterable[tuple[str, Sequence[Row]]]) -> str:
    """All rows of all checks, and a last line that counts the verdicts."""
    rows = [(name, row) for name, rows in checks for row in rows]
    cells = [_HEAD, *((name, row.what, row.figure, row.expect or "-", row.verdict) for name, row in rows)]
    texts = [[_shorten(cell, widest) for cell, widest in zip(line, _WIDEST, strict=True)] for line in cells]
    widths = [max(len(line[column]) for line in texts) for column in range(len(_HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in texts]
    counts = {verdict: sum(row.verdict == verdict for _, row in rows) for verdict in VERDICTS}
    return "\n".join([*lines, ", ".join(f"{count} {verdict}" for verdict, count in counts.items())])


def _shorten(text: str, widest: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= widest else line[: widest - 1] + "…"
