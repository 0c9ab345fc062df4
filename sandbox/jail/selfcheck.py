"""What a finished worker checks about itself before it says that it is ready. The daemon checks again, from outside."""

import os

from bedsit.sandbox.jail import landlock, seccomp
from bedsit.sandbox.jail.context import Context

_EMPTY_SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


def check_self(context: Context) -> None:
    """Raises PermissionError with what is wrong: a half-applied wall must never look like a whole one.

    Landlock cannot be seen from outside, and one filter looks like another there: both are proven here by an attempt.
    """
    with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
        status = dict(line.split(":", 1) for line in file.read().splitlines())
    held = [name for name in _EMPTY_SETS if int(status[name], 16)]
    if held:
        raise PermissionError(f"capabilities are left in {', '.join(held)}")
    ids = {context.own_id}
    if {*os.getresuid(), *os.getresgid()} != ids or os.getgroups():
        raise PermissionError(f"the worker has foreign ids: {os.getresuid()}, {os.getresgid()}, {os.getgroups()}")
    if status["NoNewPrivs"].strip() != "1":
        raise PermissionError("new privileges are still possible")
    strangers = [fd for fd in map(int, os.listdir("/proc/self/fd")) if fd not in _own(context) and _is_open(fd)]
    if strangers:
        raise PermissionError(f"descriptors {strangers} are open")
    for path in context.house.samples:
        if not os.access(path, os.R_OK):
            raise PermissionError(
                f"a jailed worker cannot read {path}: give others the right to read that tree (chmod -R o+rX)"
            )
    for name, is_refusing in (("landlock", landlock.is_refusing), ("seccomp", seccomp.is_refusing)):
        if is_refusing():
            context.proven.append(name)
        else:
            context.missing.setdefault(name, "an attempt that only this wall refuses went through")


def _own(context: Context) -> set[int]:
    return {0, 1, 2, context.control, context.report.fileno()}


def _is_open(fd: int) -> bool:
    # False for the one that listdir itself had open.
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
