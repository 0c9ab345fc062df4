"""Sockets that systemd holds: who comes while a program is started again is late, and not turned away."""

import os
import select
import signal
import time
from collections.abc import Callable

import numpy as np

from bedsit import Client
from tests.box.guest.check import ask, bedsit, check, is_full, main_pid, run, wait_until
from tests.box.guest.load import TENANT

_ONE = {"x": np.zeros((1, 64), np.float32)}


@check("tenant")
def door_is_held() -> str:
    """A client that is made right after kill -9 of the router, or after its stop, is served by the next router."""
    slowest = 0.0
    for end in (_kill, _stop):
        end("bedsit-router.service")
        slowest = max(slowest, _time(_knock))
    wait_until(is_full, "all is up again")
    return f"{slowest:.1f} s late"


@check("tenant")
def admin_is_held() -> str:
    """The same with a question to the daemon, also by the command line; without its socket unit it answers as well."""
    _kill("bedsitd.service")
    late = _time(lambda: ask("ping"))
    _stop("bedsitd.service")
    bedsit("ps")
    run("systemctl", "stop", "bedsitd.socket")
    ask("ping")
    run("systemctl", "restart", "bedsitd")
    run("systemctl", "is-active", "bedsitd.socket")
    wait_until(is_full, "all is up again")
    return f"{late:.1f} s late"


def _knock() -> None:
    with Client(TENANT) as client:
        client.infer("tiny", _ONE, timeout_s=30)


def _kill(unit: str) -> None:
    """And wait until nobody is there."""
    pid = main_pid(unit)
    fd = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        select.select([fd], [], [])
    finally:
        os.close(fd)


def _stop(unit: str) -> None:
    run("systemctl", "stop", unit)
    assert not main_pid(unit)


def _time(call: Callable[[], object]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began
