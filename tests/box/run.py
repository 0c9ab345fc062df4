"""bedsit on Debian 12 with systemd and cgroup v2, in a virtual machine: ``python -m tests.box.run [CHECK ...]``.

Prints one line a check as it ends, ``ok NAME seconds`` or ``FAIL NAME why``, and with a failure what the box's journal
has to say. The last line is ``N passed, M failed``. Needs root (debootstrap) and qemu. There is a deadline for each
check and one for all. CHECK: only these and what they need.
"""

import argparse
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.box.guest.plan import choose
from tests.box.guest.words import LAST, LOG
from tests.box.image import find_image
from tests.box.machine import PROGRAM, Machine
from tests.box.parcel import pack_parcel

_DEADLINE_S: Final = 1800
#: From the order to power off until the machine is off, with slots running, on an emulated processor.
_POWER_OFF_S: Final = 15.0
_CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bedsit" / "box"
_NEEDS: Final = {PROGRAM: "qemu-system-x86", "setpriv": "util-linux", "cc": "gcc libc6-dev"}


def main() -> int:
    """Run the checks; gives the exit status: 0 when each passed, 1 when not, 2 when the box could not be made."""
    parser = argparse.ArgumentParser(
        prog="tests.box.run", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("checks", nargs="*", metavar="CHECK")
    parser.add_argument("--list", action="store_true", help="print the names of all checks")
    options = parser.parse_args()
    try:
        names = choose(options.checks)
    except KeyError as e:
        parser.error(f"no such check: {e.args[0]}")
    if options.list:
        say(names)
        return 0
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the temporary folder goes too
    try:
        with _alone(), tempfile.TemporaryDirectory(prefix="bedsit-box-") as folder:
            results = _run(names, Path(folder), began)
    except (RuntimeError, OSError, subprocess.CalledProcessError) as e:
        said = getattr(e, "stderr", None) or b""
        say([f"the box could not be made: {e}", *said.decode(errors="replace").splitlines()])
        return 2
    passed = sum(results.values())
    say([f"box: {time.monotonic() - began:.0f} s", f"{passed} passed, {len(results) - passed} failed"])
    return 0 if passed == len(results) else 1


def say(lines: Iterable[str]) -> None:
    """Print at once, also where stdout is a file."""
    for line in lines:
        print(line, flush=True)


@contextmanager
def _alone() -> Iterator[None]:
    """One box at a time: the next one waits, rather than share the processors and the cache."""
    lacking = [package for program, package in _NEEDS.items() if not _has(program)]
    if lacking:
        raise RuntimeError(f"missing: apt-get install {' '.join(lacking)}")
    _CACHE.mkdir(parents=True, exist_ok=True)
    with (_CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _has(program: str) -> bool:
    return any((Path(folder) / program).exists() for folder in os.get_exec_path())


def _run(names: list[str], folder: Path, began: float) -> dict[str, bool]:
    """Name by name, whether it passed; what was never heard of has not."""

    def tell(what: str) -> None:
        say([f"box: {time.monotonic() - began:.0f} s: {what}"])

    image = find_image(_CACHE, tell)
    parcel = pack_parcel(folder)
    tell(f"{len(names)} checks")
    with Machine(image, parcel, folder / "console", f"box.checks={','.join(names)}") as machine:
        results, why = listen(machine)
        missing = [name for name in names if name not in results]
        if missing:
            say([*(LOG + line for line in machine.last_words()), *(f"FAIL {name} {why}" for name in missing)])
    return {name: results.get(name, False) for name in names}


def listen(machine: Machine) -> tuple[dict[str, bool], str]:
    """What the box said of each check, and why it went silent. How long it takes to go is for us to measure."""
    results: dict[str, bool] = {}
    is_leaving, leaving_at = False, 0.0

    def hear(line: str) -> None:
        verdict, _, rest = line.partition(" ")
        if verdict in ("ok", "FAIL"):
            results[rest.partition(" ")[0]] = verdict == "ok"
        if line:
            say([line])

    try:
        for line in machine.lines(time.monotonic() + _DEADLINE_S):
            if line == LAST:
                leaving_at = time.monotonic()
            elif line.startswith("ok power_off "):
                is_leaving = True  # it is about to: whether it did in time is seen from here only
            else:
                hear(line)
    except TimeoutError as e:
        return results, str(e)
    if is_leaving:
        took = time.monotonic() - leaving_at
        hear(f"{'ok' if took <= _POWER_OFF_S else 'FAIL'} power_off {took:.1f} s after the order")
    return results, "the box ended before"


if __name__ == "__main__":
    sys.exit(main())
