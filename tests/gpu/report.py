"""What a check's process says to the run that started it: a line of JSON for each row, at once: a hang loses none."""

import json
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TextIO

from tests.gpu.row import Row

_HERE: Final = str(Path(__file__).parent)
_LONGEST: Final = 300
#: Every call goes through these: the line that made it says more.
_CARRIERS: Final = ("cuda.py", "peer.py", "report.py")


class Report:
    """Rows of one check. *scale* stretches its iterations and durations: 1 for a run of ordinary length."""

    def __init__(self, out: TextIO, scale: float) -> None:
        self._out = out
        self.scale = scale

    def row(self, what: str, figure: str, expect: str = "", ok: bool | None = None, **data: Any) -> None:  # noqa: FBT001
        """Say one figure; *ok* is whether it is what was expected, None where nothing was."""
        verdict = "seen" if ok is None else "ok" if ok else "differs"
        self._say({"row": Row(what, figure, expect, verdict, data).as_json()})  # type: ignore[arg-type]

    def could_not(self, what: str, why: BaseException | str) -> None:
        """Say that there is no figure, with where it failed."""
        said = why if isinstance(why, str) else explain(why)
        trace = "" if isinstance(why, str) else "".join(traceback.format_exception(why))[-3000:]
        self._say({"row": Row(what, said, "", "could not", {"traceback": trace} if trace else {}).as_json()})

    def data(self, **data: Any) -> None:
        """What belongs into the report and not into the table."""
        self._say({"data": data})

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """A part of the check whose failure is a row and not the end of the check."""
        try:
            yield
        except Exception as e:  # noqa: BLE001 - nobody could try this code before it meets its first GPU
            self.could_not(what, e)

    def times(self, count: int, least: int = 1) -> int:
        """That often, for a run of this length."""
        return max(least, round(count * self.scale))

    def _say(self, line: dict[str, Any]) -> None:
        self._out.write(json.dumps(line, default=str) + "\n")
        self._out.flush()


def explain(why: BaseException) -> str:
    """One line: the exception, and the innermost line of ours that it came through."""
    ours = (frame for frame in traceback.extract_tb(why.__traceback__) if frame.filename.startswith(_HERE))
    frames = [frame for frame in ours if os.path.basename(frame.filename) not in _CARRIERS]
    where = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    return f"{type(why).__name__}: {' '.join(str(why).split())[:_LONGEST]}{where}"
