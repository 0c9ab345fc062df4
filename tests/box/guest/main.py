"""Runs the checks that the kernel's command line names, and says what came of each on the second serial line."""

import importlib
import signal
import subprocess
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Final, TextIO

from tests.box.guest import install
from tests.box.guest.check import CHECKS, run
from tests.box.guest.words import LAST, LOG

_JOURNAL_LINES: Final = "300"


def main() -> None:
    """Run, report, switch the machine off."""
    names = _read_names()
    early = tuple(CHECKS)  # those of `install`, which bring what the others import
    assert install.wheel.__name__ in early
    passed: set[str] = set()
    signal.signal(signal.SIGALRM, _end_check)
    with Path("/dev/ttyS1").open("w", buffering=1) as out:
        try:
            _run_checks([name for name in names if name in early], passed, out)
            importlib.invalidate_caches()
            importlib.import_module("tests.box.guest.plan")
            _run_checks([name for name in names if name not in early], passed, out)
        except BaseException:
            _say_log(out, traceback.format_exc().splitlines())
            raise
        finally:
            out.write(f"{LAST}\n")
            out.flush()
            subprocess.run(["systemctl", "poweroff", "--no-block"], check=False)


def _read_names() -> list[str]:
    words = Path("/proc/cmdline").read_text().split()
    return next(word for word in words if word.startswith("box.checks=")).partition("=")[2].split(",")


def _run_checks(names: list[str], passed: set[str], out: TextIO) -> None:
    for name in names:
        check = CHECKS[name]
        lacking = [need for need in check.needs if need not in passed]
        if lacking:
            out.write(f"FAIL {name} not run without {', '.join(lacking)}\n")
            continue
        began, since = time.monotonic(), time.time()
        signal.alarm(check.within_s)
        try:
            said = check.run()
        except Exception as e:  # noqa: BLE001 - the next check runs in any case
            signal.alarm(0)
            out.write(f"FAIL {name} {type(e).__name__}: {(str(e).splitlines() or [''])[0]}\n")
            _say_log(out, [*traceback.format_exc().splitlines(), *_read_journal(since)])
        else:
            signal.alarm(0)
            passed.add(name)
            out.write(f"ok {name} {time.monotonic() - began:.1f} {said or ''}".rstrip() + "\n")


def _end_check(_number: int, _frame: FrameType | None) -> None:
    raise TimeoutError("the check did not end in time")


def _say_log(out: TextIO, lines: list[str]) -> None:
    out.writelines(f"{LOG}{line}\n" for line in lines)


def _read_journal(since: float) -> Iterator[str]:
    """What everybody wrote since then; a slot's log is the tenant's, and not here."""
    said = run("journalctl", "--no-pager", "--output=short-monotonic", f"--since=@{int(since)}", "-n", _JOURNAL_LINES)
    return iter(said.splitlines())


if __name__ == "__main__":
    main()
