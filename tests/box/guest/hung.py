"""What hangs is noticed by systemd and replaced while a client asks: no request fails, and no worker is lost."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.box.guest.check import ask, check, is_full, main_pid, run, wait_until
from tests.box.guest.load import TENANT, Load

_WATCHDOG_S = 5
_DROP_INS = Path("/run/systemd/system")
_UNITS = ("bedsitd.service", "bedsit-router.service")


@check("tenant")
def hung() -> str:
    """A daemon, then a router, that is stopped (SIGSTOP) is ended by its watchdog, and the next one takes over."""
    worker = ask("tenant.show", name=TENANT)["worker_pid"]
    with _impatient(), Load() as load:
        for unit in _UNITS:
            _stop(unit)
            wait_until(is_full, "all is up again")
        answered = load.answered
    assert ask("tenant.show", name=TENANT)["worker_pid"] == worker, "the worker is another one"
    return f"{answered} requests"


def _stop(unit: str) -> None:
    """And wait until another process is there instead."""
    before = main_pid(unit)
    os.kill(before, signal.SIGSTOP)
    wait_until(lambda: main_pid(unit) not in (0, before), f"{unit} has another process")


@contextmanager
def _impatient() -> Iterator[None]:
    """Shorter watchdogs, as an operator would set them. The next start of a unit is the first to have the old one."""
    files = [_DROP_INS / f"{unit}.d" / "impatient.conf" for unit in _UNITS]
    for file in files:
        file.parent.mkdir(parents=True)
        file.write_text(f"[Service]\nWatchdogSec={_WATCHDOG_S}\n")
    try:
        run("systemctl", "daemon-reload")
        run("systemctl", "restart", *_UNITS)
        wait_until(is_full, "all is up again")
        yield
    finally:
        for file in files:
            file.unlink()
            file.parent.rmdir()
        run("systemctl", "daemon-reload")
