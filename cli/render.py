"""The one file that prints. stdout holds the answer and nothing else; everything said beside it goes to stderr."""

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from types import TracebackType
from typing import Any, Final, Self, TextIO

from bedsit.cli.hints import hint_for
from bedsit.cli.table import Column, Row, layout, layout_record, paint
from bedsit.cli.text import format_duration, neutralise
from bedsit.ipc.admin import Phase
from bedsit.ipc.errors import BedsitError, error

API_VERSION: Final = "v1"
_PATIENCE_S: Final = 1.0


class Format(StrEnum):
    """How an answer is written."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"
    NAME = "name"


class Declined(Exception):
    """The operator said no."""


class Screen:
    """Where answers, notes and errors go, and how. Text from elsewhere is made harmless here and nowhere else."""

    def __init__(
        self,
        form: Format = Format.TABLE,
        *,
        no_color: bool = False,
        out: TextIO | None = None,
        err: TextIO | None = None,
    ) -> None:
        self.form = form
        self._out = out or sys.stdout
        self._err = err or sys.stderr
        self._colour_out = not no_color and _wants_colour(self._out)
        self._colour_err = not no_color and _wants_colour(self._err)

    def show_rows(self, kind: str, rows: Sequence[Row], columns: Sequence[Column], name: Callable[[Row], str]) -> None:
        """A list: a table, one JSON document with ``items``, one JSON line each, or one name each."""
        match self.form:
            case Format.JSON:
                self._write_document({"api_version": API_VERSION, "kind": kind, "items": list(rows)})
            case Format.JSONL:
                self.stream_rows(rows, lambda _: "", name)
            case Format.NAME:
                self.stream_rows(rows, lambda _: "", name)
            case Format.TABLE:
                for line in layout(rows, columns, width=self._width(), colour=self._colour_out):
                    self._write(line)

    def show_record(self, kind: str, record: Row, fields: Sequence[tuple[str, object]], name: str) -> None:
        """One object: its fields below each other, one JSON document with ``item``, one JSON line, or its name."""
        match self.form:
            case Format.JSON:
                self._write_document({"api_version": API_VERSION, "kind": kind, "item": record})
            case Format.JSONL:
                self._write(_json(record))
            case Format.NAME:
                self._write(neutralise(name))
            case Format.TABLE:
                for line in layout_record(fields, aligned=self._out.isatty(), colour=self._colour_out):
                    self._write(line)

    def stream_rows(self, rows: Iterable[Row], line: Callable[[Row], str], name: Callable[[Row], str]) -> None:
        """Rows as they come, each written at once: lines, JSON lines or names. A tab in a line stays."""
        for row in rows:
            match self.form:
                case Format.JSON | Format.JSONL:
                    self._write(_json(row))
                case Format.NAME:
                    self._write(neutralise(name(row)))
                case Format.TABLE:
                    self._write(paint(neutralise(line(row), keep="\t"), colour=False))
            self._out.flush()

    @property
    def is_live(self) -> bool:
        """Whether an answer can be drawn over itself: a table, on a terminal that can."""
        return self.form is Format.TABLE and self._out.isatty() and os.environ.get("TERM") != "dumb"

    @contextmanager
    def live(self) -> Iterator[Callable[[Sequence[str], Sequence[Row], Sequence[Column]], None]]:
        """A screen of its own, and what draws lines and a table on it. What was there before is back afterwards."""
        # Nothing but this needs it, and it takes as long to load as all the rest.
        from rich.console import Console  # noqa: PLC0415
        from rich.live import Live  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        console = Console(file=self._out, force_terminal=True, no_color=not self._colour_out, highlight=False)
        with Live(
            console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        ) as live:

            def draw(head: Sequence[str], rows: Sequence[Row], columns: Sequence[Column]) -> None:
                size = shutil.get_terminal_size()
                lines = [*head, *layout(rows, columns, width=size.columns, colour=self._colour_out)]
                if len(lines) > size.lines:
                    lines[size.lines - 1 :] = [f"… {len(lines) - size.lines + 1} more"]
                live.update(Text.from_ansi("\n".join(lines), no_wrap=True, overflow="crop"), refresh=True)

            yield draw

    def flush(self) -> None:
        """Let whoever reads the answer have what there is of it."""
        self._out.flush()

    def write_answer(self, text: str) -> None:
        """Text of our own as the answer: help, a completion script."""
        self._write(text)

    def note(self, text: str) -> None:
        """Say something beside the answer."""
        self._say(neutralise(text))

    def next(self, command: str) -> None:
        """Suggest the next command; only to a person."""
        if self._err.isatty() and self.form is Format.TABLE:
            self._say(self._dim(f"next: {command}"))

    def fail(self, failure: BedsitError) -> None:
        """What went wrong and what to do: two lines, or one JSON line where the answer was to be JSON."""
        hint = hint_for(failure)
        if self.form in {Format.JSON, Format.JSONL}:
            fields = {
                "code": failure.code,
                "message": failure.message,
                "hint": hint,
                "exit_code": failure.exit_code,
            }
            self._say(_json({"error": fields}))
            return
        first, *rest = failure.message.splitlines() or [""]
        label = "\x1b[31merror:\x1b[0m" if self._colour_err else "error:"
        self._say(f"{label} {neutralise(failure.code)}: {neutralise(first)}")
        for line in rest:
            self._say(f"  {neutralise(line, keep=chr(9))}")
        self._say(f"hint: {neutralise(hint)}")

    def phases(self) -> "Phases":
        """Tell of a long call's phases once it has taken a second."""
        return Phases(self._say, self._phase_line)

    def confirm(self, question: str, *, flag: str, word: str | None = None) -> None:
        """Ask on the terminal; return if the answer is yes (or *word*), else raise Declined.

        Raises ``request.invalid`` that names *flag* where there is no terminal to ask on.
        """
        if not (sys.stdin.isatty() and self._err.isatty()):
            raise error("request.invalid", f"{question} Nobody to ask: there is no terminal", f"pass {flag}")
        wanted = f"type {word} to confirm" if word else "y/N"
        self._err.write(f"{neutralise(question)} [{wanted}] ")
        self._err.flush()
        answer = sys.stdin.readline().strip()
        if answer != word if word else answer.lower() not in {"y", "yes"}:
            raise Declined

    def _phase_line(self, name: str, ms: float | None) -> str:
        text = neutralise(name)
        if ms is None:
            return self._dim(f"  … {text}")
        mark = "\x1b[32m✓\x1b[0m" if self._colour_err else "✓"
        return f"  {mark} {text}  {format_duration(ms / 1000)}"

    def _dim(self, text: str) -> str:
        return f"\x1b[2m{text}\x1b[0m" if self._colour_err else text

    def _width(self) -> int | None:
        return shutil.get_terminal_size().columns if self._out.isatty() else None

    def _write_document(self, document: Row) -> None:
        self._write(_json(document, indent=2 if self._out.isatty() else None))

    def _write(self, line: str) -> None:
        self._out.write(line + "\n")

    def _say(self, line: str) -> None:
        self._out.flush()
        self._err.write(line + "\n")
        self._err.flush()


class Phases:
    """The phases of one call: kept back for a second, because what is fast needs no explanation; then told as they end.

    A call in one long phase says after that second what it waits for.
    """

    def __init__(
        self, say: Callable[[str], None], line: Callable[[str, float | None], str], patience_s: float = _PATIENCE_S
    ) -> None:
        self._say = say
        self._line = line
        self._lock = threading.Lock()
        self._kept: list[str] | None = []
        self._current: str | None = None
        self._timer = threading.Timer(patience_s, self._lose_patience)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()

    def __call__(self, phase: Phase) -> None:
        """Hear of a phase's begin or end."""
        with self._lock:
            self._current = phase.name if phase.ms is None else None
            if phase.ms is None and self._kept is not None:
                return
            self._tell(self._line(phase.name, phase.ms))

    def _tell(self, line: str) -> None:
        if self._kept is None:
            self._say(line)
        else:
            self._kept.append(line)

    def _lose_patience(self) -> None:
        with self._lock:
            kept, self._kept = self._kept or [], None
            for line in kept:
                self._say(line)
            if self._current is not None:
                self._say(self._line(self._current, None))


class Stopwatch:
    """Times phases of our own: ``with watch("pack"): ...`` tells *hear* of its begin and its end."""

    def __init__(self, hear: Callable[[Phase], None]) -> None:
        self._hear = hear
        self._began: list[tuple[str, float]] = []

    def __call__(self, name: str) -> Self:
        """Begin the phase *name*; leaving the ``with`` block ends it."""
        self._began.append((name, time.monotonic()))
        self._hear(Phase(name, None))
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        name, began = self._began.pop()
        if kind is None:
            self._hear(Phase(name, (time.monotonic() - began) * 1000))


def _json(value: Any, indent: int | None = None) -> str:
    # ASCII only: no control or direction-changing character of a tenant's reaches the terminal.
    return json.dumps(value, indent=indent, ensure_ascii=True, allow_nan=False)


def _wants_colour(stream: TextIO) -> bool:
    """Colour is for terminals. FORCE_COLOR and CLICOLOR_FORCE insist, NO_COLOR and TERM=dumb refuse."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR") or os.environ.get("CLICOLOR_FORCE", "0") not in {"", "0"}:
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"
