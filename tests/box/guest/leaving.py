"""The end of all of it."""

import os
from pathlib import Path

from bedsit import BedsitError
from tests.box.guest.check import CGROUPS, RUN, ask, bedsit, check, is_full, run, wait_until
from tests.box.guest.load import Load

_SLICE = CGROUPS / "bedsit.slice"


@check("tenant")
def down() -> None:
    """bedsit down and a stop of the router leave no process, cgroup, mount or socket, and a question starts nothing."""
    bedsit("down")
    run("systemctl", "stop", "bedsit-router.socket", "bedsit-router")
    try:
        ask("ping")
    except BedsitError as e:
        assert e.code == "daemon.unavailable", e
    else:
        raise AssertionError("somebody has answered")
    wait_until(lambda: not _find_leftovers(), "nothing is left", 10) if _find_leftovers() else None
    left = _find_leftovers()
    assert not left, f"left behind: {left}"
    failed = run("systemctl", "list-units", "--failed", "--plain", "--no-legend", "bedsit*")
    assert not failed, failed


@check("down", within_s=150)
def starts_again() -> None:
    """What is on disk is enough: the tenant is served again, without another word; the sockets are systemd's again."""
    run("systemctl", "start", "bedsitd", "bedsit-router")
    wait_until(is_full, "the pool is full", 140)
    run("systemctl", "is-active", "bedsitd.socket", "bedsit-router.socket")
    with Load():
        pass


@check("starts_again")
def power_off() -> None:
    """systemctl poweroff while slots run: the machine is off within seconds. How many, the other side measures."""


def _find_leftovers() -> list[str]:
    left = [f"process {pid} ({words})" for pid, words in _processes() if "bedsit" in words and pid != os.getpid()]
    left += [f"cgroup {top}" for top, _, _ in os.walk(_SLICE) if top != str(_SLICE)]
    left += [f"mount {line}" for line in Path("/proc/self/mountinfo").read_text().splitlines() if "bedsit" in line]
    left += [f"socket {line}" for line in Path("/proc/net/unix").read_text().splitlines() if str(RUN) in line]
    return left


def _processes() -> list[tuple[int, str]]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found.append((int(entry.name), (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()))
            except OSError:
                continue
    return found
