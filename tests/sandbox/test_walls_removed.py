"""Each wall taken out of the list: `inspect` must say that it is off, and the attempt it refused must get further.

Without these runs the tests of the jail would prove nothing.
"""

from typing import Any, NamedTuple

import pytest

from bedsit.sandbox.inspect import REQUIRED_LAYERS

ROOT = "make_root,devices,scratch,trees,slot_folder,proc,pivot,seal_root"


class Case(NamedTuple):
    """Steps left out or replaced by bad ones, what is off then, and an attempt with its result without that wall."""

    layer: str
    without: str = ""
    bad: str = ""
    also: tuple[str, ...] = ()
    source: str = ""
    found: Any = None
    joins: bool = True


CASES = (
    Case(
        "cgroup_limits",
        "own_group,join_cgroup,cgroup_namespace",
        also=("cgroup_namespace",),
        source="result = any(slot in line for line in open('/proc/self/cgroup'))",
        found=False,
    ),
    Case(
        "pid_namespace",
        "pid_namespace",
        source="import os; result = os.getppid() > 100",
        found=True,
    ),
    Case(
        "mount_namespace",
        f"mount_namespace,{ROOT},landlock,self_check",  # which has nothing to grant then
        also=("read_only_root", "devices", "proc_hidden"),
        source="import os; result = attempt(lambda: os.listdir('/sys'))",
        found="ok",
    ),
    Case(
        "network_namespace",
        "network_namespace,landlock,seccomp",
        also=("landlock", "seccomp"),
        source="import socket; result = attempt(lambda: socket.create_connection(('127.0.0.1', 1)))",
        found="Connection refused",
    ),
    Case("ipc_namespace", "ipc_namespace"),
    Case(
        "uts_namespace",
        "uts_namespace",
        source="import socket; result = socket.gethostname() != 'slot'",
        found=True,
    ),
    Case(
        "cgroup_namespace",
        "cgroup_namespace",
        source="result = any(slot in line for line in open('/proc/self/cgroup'))",
        found=True,
    ),
    Case(
        "user_namespace",
        "user_namespace,map_ids,no_nesting,open_sysctl",
        source="import os; result = os.getuid() > 1_900_000_000",
        found=True,
    ),
    Case(
        "closed_descriptors",
        bad="fork_worker",
        without="self_check",
        source="import os; result = len(os.listdir('/proc/self/fd')) - 1",
        found=5,
    ),
    Case(
        "closed_descriptors",
        bad="close_descriptors",
        also=(),
        without="",
        source="result = True",
        found=True,
    ),
    Case(
        "read_only_root",
        "seal_root",
        source="result = [line.split()[5].split(',')[0] for line in open('/proc/self/mountinfo')][0]",
        found="rw",
    ),
    Case(
        "devices",
        bad="devices",
        also=("read_only_root",),
        source="import os; result = 'tty' in os.listdir('/dev')",
        found=True,
    ),
    Case(
        "proc_hidden",
        bad="proc",
        source="import os; result = 'cmdline' in os.listdir('/proc') and '1' in os.listdir('/proc')",
        found=True,
    ),
    Case(
        "own_uids",
        "own_ids,self_check",
        source="import os; result = os.getuid()",
        found=65534,
    ),
    Case(
        "no_capabilities",
        "no_capabilities,self_check,seccomp",
        source="import os; result = attempt(lambda: os.setuid(1000))",
        found="ok",
    ),
    Case("no_capabilities", "bounding_set,self_check"),
    Case(
        "rlimits",
        "rlimits",
        source="import os; result = attempt(lambda: [os.dup(1) for _ in range(1025)])",
        found="ok",
    ),
    Case("no_new_privs", "no_new_privs,self_check,landlock,seccomp"),
    Case(
        "landlock",
        "landlock",
        source="import os; result = attempt(lambda: os.listdir('/'))",
        found="ok",
    ),
    Case(
        "seccomp",
        "seccomp",
        source="import os; result = os.waitpid(os.fork() or os._exit(3), 0)[1] >> 8",
        found=3,
    ),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.layer}-{case.without or case.bad}"[:60])
def test_a_missing_wall_is_seen(box: Any, case: Case) -> None:
    """The layer is off from outside, the others stand, and inside the attempt is no longer refused."""
    options = [
        word for name, value in (("--without", case.without), ("--bad", case.bad)) if value for word in (name, value)
    ]
    slot = box.spawn(box.start_zygote(*options))
    off = {name for name, state in slot.walls().items() if state != "on"} & REQUIRED_LAYERS
    unproven = {"landlock", "seccomp"} if "self_check" in case.without else set()
    assert off == {case.layer, *case.also} | unproven
    if case.source:
        assert slot.run(case.source) == case.found


def test_without_its_limit_user_namespaces_nest(box: Any) -> None:
    """What is refused in test_jail works when the step is left out: the wall is the limit."""
    source = """
import ctypes, os
libc = ctypes.CDLL(None)
child = os.fork()
if child == 0:
    os._exit(libc.unshare(0x10000000) != 0)
result = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""
    assert box.spawn(box.start_zygote("--without", "seccomp")).run(source) == 1
    assert box.spawn(box.start_zygote("--without", "no_nesting,open_sysctl,seccomp")).run(source) == 0


@pytest.mark.parametrize("step", ["own_ids", "no_capabilities", "bounding_set", "no_new_privs"])
def test_the_worker_itself_refuses(box: Any, step: str) -> None:
    """With the self-check in place, a slot without one of these walls is never handed out."""
    # landlock and seccomp demand no_new_privs: they would say so before the self-check does.
    answer, *rest = box.order(box.start_zygote("--without", f"{step},landlock,seccomp"))
    assert (answer["ok"], answer["step"]) == (False, "self_check")
    import os

    os.close(rest[1])


def test_a_slot_never_gets_the_boxs_root_to_build_in(box: Any) -> None:
    """Without a mount namespace of its own a slot refuses to mount, whatever comes after."""
    import os

    answer, _, build, *_ = box.order(box.start_zygote("--without", "mount_namespace"))
    os.close(build)
    assert (answer["ok"], answer["step"]) == (False, "make_root")


def test_the_dead_have_no_walls(box: Any) -> None:
    """A process that is gone is never reported as walled in."""
    slot = box.spawn(box.start_zygote())
    slot.kill()
    assert all(state.startswith("off: ") for state in slot.walls().values())


def test_other_limits_are_seen(box: Any) -> None:
    """Limits that are not what the tenant was promised are a missing wall."""
    from bedsit.sandbox.cgroup import Limits

    slot = box.spawn(box.start_zygote())
    wrong = slot.walls(limits=Limits(1 << 30, 64, 1.0))["cgroup_limits"]
    name = {"v1": "memory memsw_limit_in_bytes", "v2": "memory.max"}[slot.backend.limits_version]
    assert wrong == f"off: {name} is 536870912, not 1073741824"
