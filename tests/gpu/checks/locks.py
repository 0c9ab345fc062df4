"""Keeping a process from submitting work, from outside: how long the driver's lock takes, when it fails, who may."""

import time
from typing import Any, Final

from tests.gpu.figures import Summary, merge
from tests.gpu.peer import Peer, PeerError, busy
from tests.gpu.report import Report
from tests.gpu.suspender import start_suspender

#: So few that a hang loses few.
_PART: Final = 10
_LIMIT_MS: Final = 1000
_LONG_MS: Final = 2500.0
_NOBODY: Final = 65534


def check(report: Report) -> None:
    """An idle process, a busy one, one in a long kernel; then as another user."""
    with Peer("worker:compute") as target, start_suspender() as suspender:
        target.ask("open")
        with report.step("lock an idle process"):
            _cycle(report, suspender, target, "idle", report.times(100, 20), 5.0)
        with report.step("lock a process with 1 ms kernels"), busy([target], "flood", ms=1.0, depth=2):
            _cycle(report, suspender, target, "2 kernels of 1 ms queued", report.times(60, 20), 50.0)
        with report.step("lock a process with 20 ms kernels"), busy([target], "flood", ms=20.0, depth=2):
            _cycle(report, suspender, target, "2 kernels of 20 ms queued", report.times(40, 20), 60.0)
        with report.step("lock a process in a long kernel"):
            _lock_long(report, suspender, target)
        with report.step("what a locked process does"):
            _wait_locked(report, suspender, target)
    for what, caller, owner in (
        ("as nobody, of nobody", _NOBODY, _NOBODY),
        ("as nobody, of root", _NOBODY, None),
        ("as root, of nobody", None, _NOBODY),
    ):
        with report.step(f"lock {what}"):
            _lock_as(report, what, caller, owner)


def _cycle(report: Report, suspender: Peer, target: Peer, what: str, times: int, limit_ms: float) -> None:
    locks: list[Summary] = []
    unlocks: list[Summary] = []
    failures: list[str] = []
    done = 0
    try:
        while done < times:
            seen = suspender.ask("cycle", pid=target.pid, timeout_ms=_LIMIT_MS, times=_PART, wait_s=15)
            locks.append(seen["lock"])
            unlocks.append(seen["unlock"])
            failures += seen["failures"]
            done += _PART
    except TimeoutError as e:
        failures.append(str(e))
    lock, unlock = merge(locks), merge(unlocks)
    names = f" ({', '.join(sorted(set(failures)))})" if failures else ""
    report.row(
        f"lock, {what}",
        f"p50 {lock['p50']:.2f} worst {lock['max']:.1f} ms, unlock p50 {unlock['p50']:.2f}; "
        f"{len(failures)} of {done} failed{names}",
        f"<= {limit_ms:g} ms, 0-5 % fail",
        0 < lock["p50"] <= limit_ms and len(failures) <= 0.05 * done,
        lock=lock,
        unlock=unlock,
        failures=failures[:20],
    )


def _lock_long(report: Report, suspender: Peer, target: Peer) -> None:
    target.ask("queue", ms=_LONG_MS, count=1)
    tried = suspender.ask("lock", pid=target.pid, timeout_ms=100)
    state = suspender.ask("state", pid=target.pid)["state"]
    is_late = tried["code"] != 0
    report.row(
        "lock with 100 ms, in a kernel of 2.5 s",
        f"{tried['name']} after {tried['ms']:.0f} ms, then {state}",
        "an error, then running",
        is_late and state == "running",
        code=tried["code"],
    )
    if not is_late:
        suspender.ask("unlock", pid=target.pid)
    elapsed = target.ask("collect")["elapsed_ms"]
    report.row("that kernel", f"done after {elapsed:.0f} ms of the GPU's", "goes on", elapsed > 0)
    target.ask("queue", ms=_LONG_MS, count=1)
    waited = suspender.ask("lock", pid=target.pid, timeout_ms=10_000)
    report.row(
        "lock with 10 s, in a kernel of 2.5 s",
        f"{waited['name']} after {waited['ms']:.0f} ms",
        "waits for the kernel",
        waited["code"] == 0 and waited["ms"] > 500,
    )
    suspender.ask("unlock", pid=target.pid)
    target.ask("collect")


def _wait_locked(report: Report, suspender: Peer, target: Peer) -> None:
    """Its next launch waits until it is unlocked, and nothing else of it does."""
    suspender.ask("lock", pid=target.pid, timeout_ms=_LIMIT_MS)
    target.tell("loop", ms=1.0, at=time.monotonic(), seconds=0.1)
    try:
        target.hear(0.5)
        figure, is_waiting = "answered", False
    except TimeoutError:
        figure, is_waiting = "waits", True
    suspender.ask("unlock", pid=target.pid)
    if is_waiting:
        target.hear()
        figure += ", goes on once unlocked"
    report.row("a launch while locked", figure, "waits", is_waiting)


def _lock_as(report: Report, what: str, caller: int | None, owner: int | None) -> None:
    """Whether that takes privileges; nothing of the first process is used again."""
    with Peer("holder:hold") as target:
        if owner is not None:
            target.ask("become", user=owner)
        target.ask("open")
        try:
            suspender = start_suspender(caller)
        except PeerError as e:
            report.could_not(f"lock {what}", f"no driver for that user: {e}")
            return
        with suspender:
            said: dict[str, Any] = suspender.ask("lock", pid=target.pid, timeout_ms=_LIMIT_MS)
            if said["code"] == 0:
                suspender.ask("unlock", pid=target.pid)
            report.row(f"lock {what}", f"{said['code']} {said['name']}", "", None, **said)
