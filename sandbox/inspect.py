"""The walls of a slot, read from outside: what the kernel says of init and worker, never what they say of themselves.

Runs in the root daemon. It opens nothing below a slot's root: all facts come from the box's own /proc/<pid>.
"""

import contextlib
import dataclasses
import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from bedsit.ipc.errors import BedsitError
from bedsit.sandbox.cgroup import CgroupBackend, Limits
from bedsit.sandbox.jail.context import INIT_ID, WORKER_ID
from bedsit.sandbox.jail.limits import rlimits
from bedsit.sandbox.jail.root import DEVICES, PROC_OPTIONS, SCRATCH
from bedsit.sandbox.nodes import Node
from bedsit.sandbox.process import Mount, Process, read_namespaces, read_process, read_status

ON: Final = "on"
_CAPABILITY_SETS: Final = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
_SECCOMP_FILTER: Final = "2"  # SECCOMP_MODE_FILTER
_FILTERS: Final = "Seccomp_filters"
_BLANK_DESCRIPTORS: Final = 4  # three streams and the control socket
_SCRATCH_OPTIONS: Final = frozenset({"nosuid", "nodev", "noexec"})


@dataclasses.dataclass(frozen=True, slots=True)
class Expected:
    """The slot as the daemon ordered it; *blank* until a tenant is assigned, whose worker may then open more.

    *proven* are the walls that the worker tried at its birth, before it had a tenant, and found up. *zygote* is the
    process that forked it, while that lives: under systemd it is in namespaces of its own, which are no slot's either.
    *nodes* are those of the device that it was born for.
    """

    slot: str
    init_uid: int
    worker_uid: int
    backend: CgroupBackend
    limits: Limits
    bundle_bytes: int
    blank: bool = True
    proven: tuple[str, ...] = ()
    zygote: int | None = None
    nodes: tuple[Node, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class _Facts:
    others: Sequence[Mapping[str, str]]
    zygote: Mapping[str, str]
    init: Process
    worker: Process
    expected: Expected


_Check = Callable[[_Facts], str | None]


def inspect_slot(init_pid: int, worker_pid: int, expected: Expected) -> dict[str, str]:
    """Every layer as "on" or "off: why". Never raises: what cannot be read is off."""
    try:
        others, zygote = [read_namespaces(os.getpid())], {}
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it may end at any time; its slots live on
            if expected.zygote:
                others.append(read_namespaces(expected.zygote))
                zygote = read_status(expected.zygote)
        facts = _Facts(others, zygote, read_process(init_pid), read_process(worker_pid), expected)
    except (OSError, ValueError) as e:
        return dict.fromkeys(LAYERS, f"off: not readable: {e}")
    return {name: _judge(check, facts) for name, check in _CHECKS.items()}


def find_worker(init_pid: int, procs: Iterable[int]) -> int:
    """The worker of the slot whose init is *init_pid*, among the group's *procs*. Raises LookupError.

    It is init's first child and so pid 2 of the slot; orphans that init inherited have higher numbers.
    """
    children: list[tuple[int, int, int]] = []
    for pid in procs:
        try:
            status = read_status(pid)
            if int(status["PPid"]) == init_pid:
                children.append((start_time(pid), int(status["NSpid"].split()[-1]), pid))
        except (OSError, ValueError):
            continue  # it ended meanwhile
    if not children:
        raise LookupError(f"process {init_pid} has no worker")
    return min(children)[2]


def start_time(pid: int) -> int:
    """When the process started, in clock ticks since boot: with the pid it names a process for good (proc_pid_stat(5)).

    Raises ProcessLookupError.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        raise ProcessLookupError(f"no process {pid}") from None
    return int(text.rpartition(")")[2].split()[19])  # field 22; a name may hold spaces and brackets


def _judge(check: _Check, facts: _Facts) -> str:
    try:
        why = check(facts)
    except (OSError, BedsitError, LookupError, ValueError) as e:
        why = f"not readable: {e}"
    return f"off: {why}" if why else ON


def _namespace(kind: str) -> _Check:
    def check(facts: _Facts) -> str | None:
        if facts.worker.namespaces[kind] in [other[kind] for other in facts.others]:
            return "the worker is in the box's own"
        if facts.worker.namespaces[kind] != facts.init.namespaces[kind]:
            return "the worker is not in its init's"
        return None

    return check


def _pid_namespace(facts: _Facts) -> str | None:
    if facts.init.pids[-1] != 1:
        return "the slot's init is not pid 1"
    return _namespace("pid")(facts)


def _network_namespace(facts: _Facts) -> str | None:
    if why := _namespace("net")(facts):
        return why
    lines = Path(f"/proc/{facts.worker.pid}/net/dev").read_text(encoding="utf-8").splitlines()[2:]
    others = [name for name in (line.split(":")[0].strip() for line in lines) if name != "lo"]
    return f"the worker has interfaces: {', '.join(others)}" if others else None


def _user_namespace(facts: _Facts) -> str | None:
    if why := _namespace("user")(facts):
        return why
    wanted = [[INIT_ID, facts.expected.init_uid, 1], [WORKER_ID, facts.expected.worker_uid, 1]]
    for name in ("uid_map", "gid_map"):
        text = Path(f"/proc/{facts.worker.pid}/{name}").read_text(encoding="ascii")
        if [[int(number) for number in line.split()] for line in text.splitlines()] != wanted:
            return f"{name} is not the slot's two ids"
    return None


def _read_only_root(facts: _Facts) -> str | None:
    roots = [mount for mount in facts.worker.mounts if mount.point == "/"]
    if not roots or roots[-1].kind != "tmpfs":
        return "/ is not the slot's own"
    for mount in facts.worker.mounts:
        if "ro" in mount.options or mount.point == "/proc" or _is_device(facts, mount):
            continue
        if mount.point not in SCRATCH or mount.kind != "tmpfs":
            return f"{mount.point} is writable"
        if not mount.options >= _SCRATCH_OPTIONS:
            return f"{mount.point} lacks {', '.join(sorted(_SCRATCH_OPTIONS - mount.options))}"
    return None


def _devices(facts: _Facts) -> str | None:
    missing = set(_device_points(facts))
    for mount in facts.worker.mounts:
        if _is_device(facts, mount) and mount.point in missing:
            missing.remove(mount.point)
        elif "nodev" not in mount.options:
            return f"device nodes work on {mount.point}"
    if missing:
        return f"{min(missing)} is not there"
    for node in facts.expected.nodes:
        # Looked at and not opened: it is a mount of ours, as was just seen, on a root that nobody in there can change.
        point = f"/dev/{node.name}"
        if not node.is_still(os.stat(f"/proc/{facts.worker.pid}/root{point}", follow_symlinks=False)):
            return f"{point} is not the device {node.major}:{node.minor}"
    return None


def _device_points(facts: _Facts) -> Mapping[str, str]:
    """Where device nodes are meant to work, and what each is called where it comes from."""
    nodes = {f"/dev/{node.name}": os.path.basename(node.source) for node in facts.expected.nodes}
    return {f"/dev/{name}": name for name in DEVICES} | nodes


def _is_device(facts: _Facts, mount: Mount) -> bool:
    return _device_points(facts).get(mount.point) == mount.root.rpartition("/")[2]


def _proc_hidden(facts: _Facts) -> str | None:
    mounts = [mount for mount in facts.worker.mounts if mount.kind == "proc"]
    if [mount.point for mount in mounts] != ["/proc"]:
        return f"proc is mounted at {', '.join(mount.point for mount in mounts) or 'no place'}"
    lacking = set(PROC_OPTIONS.split(",")) - mounts[0].super_options
    return f"/proc lacks {', '.join(sorted(lacking))}" if lacking else None


def _own_uids(facts: _Facts) -> str | None:
    for process, uid in ((facts.init, facts.expected.init_uid), (facts.worker, facts.expected.worker_uid)):
        for field in ("Uid", "Gid"):
            if set(process.status[field].split()) != {str(uid)}:
                return f"process {process.pid} has {field} {process.status[field]}, not {uid}"
        if process.status["Groups"]:
            return f"process {process.pid} has groups {process.status['Groups']}"
    return None


def _no_capabilities(facts: _Facts) -> str | None:
    for process in (facts.init, facts.worker):
        for name in _CAPABILITY_SETS:
            if int(process.status[name], 16):
                return f"process {process.pid} has {name} {process.status[name]}"
    return None


def _no_new_privs(facts: _Facts) -> str | None:
    for process in (facts.init, facts.worker):
        if process.status["NoNewPrivs"] != "1":
            return f"process {process.pid} may gain privileges"
    return None


def _landlock(facts: _Facts) -> str | None:
    # No kernel shows a process's landlock to others: what holds is that it cannot be taken off (landlock(7)).
    return None if "landlock" in facts.expected.proven else "the worker did not prove it at its birth"


def _seccomp(facts: _Facts) -> str | None:
    for process in (facts.init, facts.worker):
        if process.status["Seccomp"] != _SECCOMP_FILTER:
            return f"process {process.pid} has no filter"
        # The zygote's unit may have put filters on all of them: a slot's come on top (the line is there since 5.9).
        counts = [status.get(_FILTERS) for status in (facts.zygote, process.status)]
        if None not in counts and int(counts[0] or 0) >= int(counts[1] or 0):
            return f"process {process.pid} has no filter but its zygote's"
    # One filter looks like another from here.
    return None if "seccomp" in facts.expected.proven else "the worker did not prove it at its birth"


def _rlimits(facts: _Facts) -> str | None:
    for which, value in rlimits(facts.expected.bundle_bytes).items():
        actual = facts.worker.rlimits[which]
        if actual != (str(value), str(value)):
            return f"rlimit {which} is {' '.join(actual)}, not {value}"
    return None


def _closed_descriptors(facts: _Facts) -> str | None:
    inside = {mount.id for mount in facts.worker.mounts}
    for process in (facts.init, facts.worker):
        for fd in process.descriptors:
            if fd.kind in (stat.S_IFDIR, stat.S_IFCHR, stat.S_IFBLK) and fd.mount not in inside:
                return f"process {process.pid} holds {fd.target!r} of the box as {fd.number}"
    # A worker that has opened its device has descriptors of it, which are on mounts of the slot's, as was just seen.
    if facts.expected.blank and not facts.expected.nodes:
        kinds = [fd.kind for fd in facts.worker.descriptors]
        if kinds != [stat.S_IFCHR, stat.S_IFIFO, stat.S_IFIFO, stat.S_IFSOCK]:
            return f"the worker holds {len(kinds)} descriptors that are not its own {_BLANK_DESCRIPTORS}"
    return None


def _cgroup_limits(facts: _Facts) -> str | None:
    expected = facts.expected
    return expected.backend.verify(expected.slot, expected.limits, (facts.init.pid, facts.worker.pid))


def _device_program(facts: _Facts) -> str | None:
    return facts.expected.backend.check_devices(facts.expected.slot)


_CHECKS: Final[Mapping[str, _Check]] = {
    "cgroup_limits": _cgroup_limits,
    "device_program": _device_program,
    "pid_namespace": _pid_namespace,
    "mount_namespace": _namespace("mnt"),
    "network_namespace": _network_namespace,
    "ipc_namespace": _namespace("ipc"),
    "uts_namespace": _namespace("uts"),
    "cgroup_namespace": _namespace("cgroup"),
    "user_namespace": _user_namespace,
    "closed_descriptors": _closed_descriptors,
    "read_only_root": _read_only_root,
    "devices": _devices,
    "proc_hidden": _proc_hidden,
    "own_uids": _own_uids,
    "no_capabilities": _no_capabilities,
    "rlimits": _rlimits,
    "no_new_privs": _no_new_privs,
    "landlock": _landlock,
    "seccomp": _seccomp,
}

LAYERS: Final = tuple(_CHECKS)
# What a tenant with isolation = "strict" cannot be without.
REQUIRED_LAYERS: Final = frozenset(_CHECKS)
