"""Daemon, router and zygote are struck in one moment while a client asks: no request fails, and no worker is lost."""

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
def all_hung() -> str:
    """A daemon and a router that are stopped (SIGSTOP) are ended by their watchdogs, and the next ones take over."""
    with _impatient():
        return _strike(signal.SIGSTOP, _UNITS)


@check("tenant")
def all_killed() -> str:
    """kill -9: the next daemon adopts the slots of a zygote that is dead."""
    zygote = wait_until(lambda: ask("status")["zygote"]["generation"], "the zygote is up")
    return _strike(signal.SIGKILL, (*_UNITS, f"bedsit-zygote@{zygote}.service"))


def _strike(number: int, units: tuple[str, ...]) -> str:
    """Send all of them a signal; daemon and router are replaced, and what is served stays where it is."""
    worker = ask("tenant.show", name=TENANT)["worker_pid"]
    with Load() as load:
        struck = [main_pid(unit) for unit in units]
        for pid in struck:
            os.kill(pid, number)
        for unit, pid in zip(_UNITS, struck, strict=False):
            wait_until(lambda unit=unit, pid=pid: main_pid(unit) not in (0, pid), f"{unit} has another process")
        wait_until(is_full, "all is up again")
        answered = load.answered
    assert ask("tenant.show", name=TENANT)["worker_pid"] == worker, "the worker is another one"
    return f"{answered} requests"


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
