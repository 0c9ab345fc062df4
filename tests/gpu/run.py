"""Checks of one NVIDIA GPU as it is, no setting changed: ``python -m tests.gpu.run --json FILE``.

Prints a line as each check ends, then the table: check, what, figure, expectation, and ok, differs, could not, or seen
where nothing was expected. Each check is a process of its own with a deadline of its own; what it said before it hung
or crashed stays. Exits 0 when it ran, whatever was found, and where there is no NVIDIA driver.
"""

import argparse
import json
import os
import platform
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final

from tests.gpu.cuda import is_here
from tests.gpu.plan import CHECKS, Check
from tests.gpu.row import Row, read_row, render_table

_FOLDER: Final = Path(__file__).resolve().parent
#: What the checks' own numbers of iterations were chosen for.
_ORDINARY_S: Final = 300
#: Of the seconds asked for: where the run stops even in the middle of a check.
_SLACK: Final = 1.2
_DIES_WITHIN_S: Final = 5.0
_LAST_WORDS: Final = 2000


@dataclass
class Outcome:
    """What came of one check."""

    name: str
    title: str
    rows: list[Row] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    took_s: float = 0.0

    def could_not(self, why: str) -> None:
        """A row that says why there are no more."""
        self.rows.append(Row(self.title, why, verdict="could not"))

    def as_json(self) -> dict[str, Any]:
        """For the report."""
        rows = [row.as_json() for row in self.rows]
        return {"name": self.name, "title": self.title, "took_s": self.took_s, "rows": rows, "data": self.data}


def main() -> int:
    """Run the checks; gives the exit status: 0 when they ran, 2 when it was called wrongly."""
    options = _read_options()
    if options.show:
        print(show(json.loads(options.show.read_text())))
        return 0
    if not is_here():
        print("no NVIDIA GPU: /proc/driver/nvidia/version is missing, nothing was checked")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the process that keeps the GPU open goes too
    report: dict[str, Any] = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "seconds": options.seconds,
    }
    outcomes: list[Outcome] = []
    began = time.monotonic()
    for outcome in run_checks(options.only, options.seconds):
        outcomes.append(outcome)
        unknown = sum(row.verdict == "could not" for row in outcome.rows)
        left = f", {unknown} could not" if unknown else ""
        print(f"{outcome.name:8}{outcome.took_s:6.1f} s  {len(outcome.rows)} rows{left}", flush=True)
        report["took_s"] = round(time.monotonic() - began, 1)
        report["checks"] = [each.as_json() for each in outcomes]
        _write(options.json, report)
    print(show(report))
    return 0


def show(report: Mapping[str, Any]) -> str:
    """The table of a report."""
    checks = [(check["name"], [read_row(row) for row in check["rows"]]) for check in report["checks"]]
    return f"{render_table(checks)}\n{report['when']}, {report['took_s']:.0f} s"


def run_checks(
    names: Sequence[str], seconds: float, checks: Mapping[str, Check] = CHECKS, command: Sequence[str] = ()
) -> Iterator[Outcome]:
    """One after another, in the plan's order; *command* starts them, this Python on this folder when it is empty."""
    ends = time.monotonic() + seconds * _SLACK
    start = [*(command or (sys.executable, str(_FOLDER))), "check"]
    with ExitStack() as stack:
        is_kept = False
        for name, check in checks.items():
            if name not in names:
                continue
            outcome = Outcome(name, check.title)
            began = time.monotonic()
            if check.held and not is_kept and not command:
                stack.enter_context(_keep_open())
                is_kept = True
            left = ends - time.monotonic()
            if left < 1:
                outcome.could_not("no time was left")
            else:
                _run([*start, name, f"{seconds / _ORDINARY_S:g}"], outcome, min(check.within_s, left))
            outcome.took_s = round(time.monotonic() - began, 2)
            yield outcome


def _run(command: Sequence[str], outcome: Outcome, within_s: float) -> None:
    """Run one check and read what it says, until it ends or is ended with everything that it started."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, start_new_session=True
        )
        left: list[int] = []
        try:
            is_late = not _listen(process, outcome, time.monotonic() + within_s)
        finally:
            left += _end(process.pid)
        if is_late:
            outcome.could_not(f"not done after {within_s:.0f} s, killed")
        try:
            status = process.wait(_DIES_WITHIN_S)
        except subprocess.TimeoutExpired:
            status = 0
            left.append(process.pid)
        if left:
            outcome.could_not(f"SIGKILL did not end {', '.join(map(str, sorted(set(left))))}")
        size = said.seek(0, os.SEEK_END)
        said.seek(max(0, size - _LAST_WORDS))
        words = said.read().decode(errors="replace")
    if words.strip():
        outcome.data["stderr"] = words
    if status != 0 and not is_late:
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        outcome.could_not(f"{how}: {' '.join(words.split()[-30:])}")
    elif not outcome.rows:
        outcome.could_not("it said nothing")


def _listen(process: subprocess.Popen[bytes], outcome: Outcome, deadline: float) -> bool:
    """Read rows until the process has ended; gives whether it did so in time."""
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    line = b""
    pidfd = os.pidfd_open(process.pid)
    files: list[int | IO[bytes]] = [pidfd, process.stdout]
    try:
        while True:
            # In this order: what it wrote before its end is there when its end is.
            is_over = bool(select.select([pidfd], [], [], 0)[0])
            while chunk := _read(process.stdout):
                *lines, line = (line + chunk).split(b"\n")
                for each in lines:
                    _take(each, outcome)
            if chunk is not None:
                files = [pidfd]
            left = deadline - time.monotonic()
            if is_over or left <= 0:
                return is_over
            # Not the end of its stdout: something that it started may hold that open.
            select.select(files, [], [], left)
    finally:
        os.close(pidfd)
        process.stdout.close()


def _read(file: IO[bytes]) -> bytes | None:
    """What is there: nothing at its end, None when there is nothing yet."""
    try:
        return os.read(file.fileno(), 1 << 16)
    except BlockingIOError:
        return None


def _take(line: bytes, outcome: Outcome) -> None:
    """A line of a check; what is no row is kept for whoever looks for the reason."""
    try:
        said = json.loads(line)
        if "row" in said:
            outcome.rows.append(read_row(said["row"]))
        else:
            outcome.data.update(said["data"])
    except (ValueError, KeyError, TypeError):
        outcome.could_not(f"it said {line[:100]!r}")


def _end(group: int) -> list[int]:
    """Kill the process group; gives who outlived it, as a process does whose system call never returns."""
    deadline = time.monotonic() + _DIES_WITHIN_S
    while living := _find_members(group):
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            return []
        if time.monotonic() > deadline:
            return living
        time.sleep(0.02)
    return []


def _find_members(group: int) -> list[int]:
    """Processes of the group that are more than an exit status that nobody fetched yet."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, _, process_group = (entry / "stat").read_text(errors="replace").rpartition(") ")[2].split()[:3]
        except OSError:
            continue
        if int(process_group) == group and state not in "ZX":
            found.append(int(entry.name))
    return found


@contextmanager
def _keep_open() -> Iterator[None]:
    """A process that has the GPU open; `keep` in child.py says why. Without it figures are worse, no more."""
    keeper = subprocess.Popen(
        [sys.executable, str(_FOLDER), "keep"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    try:
        select.select([keeper.stdout], [], [], 15.0)
        yield
    finally:
        keeper.stdin.close()
        keeper.stdout.close()
        try:
            keeper.wait(_DIES_WITHIN_S)
        except subprocess.TimeoutExpired:
            keeper.kill()


def _write(file: Path | None, report: Mapping[str, Any]) -> None:
    """After each check, so that a run that is ended has its results too."""
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(file.name + ".part")
        draft.write_text(json.dumps(report, indent=1) + "\n")
        draft.replace(file)


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tests.gpu.run", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything here, anew after each check")
    parser.add_argument("--only", default="", metavar="T3,T7", help=f"of {', '.join(CHECKS)}")
    parser.add_argument(
        "--seconds", type=float, default=_ORDINARY_S, metavar="N", help="aim at N, end after 1.2 N (300)"
    )
    parser.add_argument("--show", type=Path, metavar="FILE", help="print the table of an earlier --json, check nothing")
    options = parser.parse_args()
    options.only = [name for name in options.only.split(",") if name] or list(CHECKS)
    if unknown := [name for name in options.only if name not in CHECKS]:
        parser.error(f"no such check: {unknown[0]}")
    return options


if __name__ == "__main__":
    sys.exit(main())
