"""What every wall needs of the box, one check each: how to see it, what is open without it, how to mend it.

A check says what it found, or raises. Together they carry every layer that `inspect` looks for.
"""

import errno
import functools
import os
import platform
import re
from pathlib import Path
from typing import Final

from bedsit.ipc.errors import BedsitError
from bedsit.sandbox.cgroup.devices import DeviceProgram
from bedsit.sandbox.jail import libc
from bedsit.sandbox.jail.root import PROC_OPTIONS
from bedsit.sandbox.probe import groups, kernel
from bedsit.sandbox.probe.finding import Check, Missing
from bedsit.sandbox.seccomp import libseccomp
from bedsit.sandbox.trees import find_closed_folder, find_trees

_KERNEL: Final = (5, 14)
_MACHINES: Final = ("x86_64", "aarch64")
_SHM_BYTES: Final = 1 << 30
_NVIDIA: Final = "0x10de"
_UNITS: Final = ("bedsitd.service", "bedsit-router.service", "bedsit-zygote@.service", "bedsit.slice")
_UNIT_FOLDERS: Final = ("/etc/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system")


def _root() -> str:
    if os.geteuid() != 0:
        raise Missing(f"uid {os.geteuid()}")
    return "uid 0"


def _kernel() -> str:
    numbers = re.match(r"(\d+)\.(\d+)", platform.release())
    if not numbers or tuple(map(int, numbers.groups())) < _KERNEL:
        raise Missing(f"Linux {platform.release()}")
    if platform.machine() not in _MACHINES:
        raise Missing(f"a {platform.machine()}", f"use one of: {', '.join(_MACHINES)}")
    return f"Linux {platform.release()}, {platform.machine()}"


def _namespace(kind: str, exposes: str, *walls: str) -> Check:
    short = {"mount": "mnt", "network": "net"}.get(kind, kind)

    def look() -> str:
        try:
            return kernel.try_namespace(kind)
        except OSError as e:
            if e.errno == errno.ENOSPC:
                raise Missing("none allowed", f"sysctl -w user.max_{short}_namespaces=10000") from None
            if e.errno == errno.EINVAL:
                raise Missing("unknown to this kernel") from None
            raise

    option = {"mount": "NAMESPACES", "cgroup": "CGROUPS"}.get(kind, f"{short.upper()}_NS")
    return Check(f"{kind} namespace", look, exposes, f"boot a kernel with CONFIG_{option}", walls)


def _controller(name: str, exposes: str, *, required: bool = True, v1_name: str = "") -> Check:
    return Check(
        f"{name} controller",
        functools.partial(groups.find_controller, name, v1_name or name),
        exposes,
        f"echo +{name} > /sys/fs/cgroup/cgroup.subtree_control",
        ("cgroup_limits",) if required else (),
        required,
    )


def _device_program() -> str:
    try:
        DeviceProgram()
    except BedsitError as e:
        if os.geteuid() != 0:
            raise PermissionError(e.message) from None
        raise Missing(e.message, e.hint) from None
    return "loaded, and let go again"


def _landlock() -> str:
    try:
        return f"ABI {libc.landlock_abi()}"
    except OSError as e:
        if e.errno == errno.EOPNOTSUPP:
            raise Missing("switched off at boot", "boot with landlock in lsm= on the kernel's command line") from None
        raise Missing("unknown to this kernel") from None


def _landlock_since(abi: int, what: str, kernel_version: str, exposes: str) -> Check:
    def look() -> str:
        try:
            found = libc.landlock_abi()
        except OSError:
            raise Missing("no landlock") from None
        if found < abi:
            raise Missing(f"ABI {found}, it came with {abi}")
        return f"ABI {found}"

    return Check(f"landlock {what}", look, exposes, f"boot Linux {kernel_version} or later", (), required=False)


def _seccomp() -> str:
    libc.require_filters()
    return "can end a process"


def _libseccomp() -> str:
    if not libseccomp.is_there():
        raise Missing("no libseccomp.so.2")
    return "libseccomp.so.2"


def _readable() -> str:
    trees = find_trees()
    for tree in trees:
        closed = find_closed_folder(tree)
        if closed is not None:
            raise Missing(f"{closed} is closed to other users", f"chmod -R o+rX {closed}")
    return f"{len(trees)} folders, open to all users"


def _shm() -> str:
    room = os.statvfs("/dev/shm")
    size = room.f_blocks * room.f_frsize
    if size < _SHM_BYTES:
        raise Missing(f"{size >> 20} MiB")
    return f"{size >> 20} MiB"


def _units() -> str:
    if not groups.SYSTEMD.is_dir():
        raise Missing("systemd does not run here", "start bedsit with: bedsit up")
    lacking = [unit for unit in _UNITS if not any((Path(folder) / unit).exists() for folder in _UNIT_FOLDERS)]
    if lacking:
        raise Missing(f"not installed: {', '.join(lacking)}")
    return "installed"


def _nvidia() -> str:
    version = Path("/proc/driver/nvidia/version")
    if version.exists():
        return version.read_text(encoding="utf-8").splitlines()[0].removeprefix("NVRM version: ").strip()
    vendors = (file.read_text(encoding="ascii").strip() for file in Path("/sys/bus/pci/devices").glob("*/vendor"))
    if _NVIDIA in vendors:
        raise Missing("a NVIDIA device without its driver")
    raise Missing("no NVIDIA device", "nothing: this box has no GPU")


CHECKS: Final[tuple[Check, ...]] = (
    Check("root", _root, "nothing, but only root can build slots", "run bedsit as root"),
    Check(
        "kernel",
        _kernel,
        "the box's own trees, which a slot could write to, and slots that outlive their end",
        "boot Linux 5.14 or later",
        ("closed_descriptors", "read_only_root", "devices", "own_uids", "no_capabilities", "rlimits", "no_new_privs"),
    ),
    _namespace("mount", "the box's files", "mount_namespace", "read_only_root", "devices"),
    _namespace("pid", "the box's processes, and those of other tenants", "pid_namespace"),
    _namespace("network", "the network, and services that listen on this box only", "network_namespace"),
    _namespace("ipc", "System V and POSIX shared memory of others", "ipc_namespace"),
    _namespace("uts", "the box's name, which a slot could then change", "uts_namespace"),
    _namespace("cgroup", "the paths of the box's control groups", "cgroup_namespace"),
    _namespace("user", "the box's own ids: a slot's root would be root, though without capabilities", "user_namespace"),
    Check(
        "proc hidepid",
        lambda: kernel.try_proc_options(PROC_OPTIONS),
        "what /proc tells of the box beyond a slot's own processes",
        "boot Linux 5.8 or later",
        ("proc_hidden",),
    ),
    Check(
        "cgroup2",
        lambda: str(groups.find_unified()),
        "nothing, but no slot is built: nobody could end one, or know that it has ended",
        "mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified",
        ("cgroup_limits", "device_program"),
    ),
    Check(
        "kill and freeze",
        groups.find_end,
        "the box, to processes that fork faster than they are killed and so outlive their slot",
        "boot Linux 5.14 or later",
        ("cgroup_limits",),
    ),
    Check(
        "birth in a group",
        lambda: kernel.try_birth_in_group(groups.find_unified()),
        "nothing: a slot is then moved into its group, which takes some 10 ms more",
        "boot Linux 5.7 or later, and let no filter around bedsit refuse clone3",
        required=False,
    ),
    _controller("memory", "memory: one tenant's is another's shortage"),
    _controller("pids", "the table of processes: a fork bomb fills it for the whole box"),
    _controller("cpu", "processor time: one tenant spins, all wait"),
    _controller("cpuset", "the choice of cores: a tenant cannot be kept to some", required=False),
    _controller("io", "disk bandwidth: a tenant cannot be kept to a part", required=False, v1_name="blkio"),
    Check(
        "swap accounting",
        groups.find_swap_accounting,
        "the swap: a tenant at its memory limit pushes the box into it",
        "swapoff -a, or boot with swapaccount=1",
        ("cgroup_limits",),
    ),
    Check(
        "device program",
        _device_program,
        "devices, if a node that should not be there ever is: only the node's absence stands before them",
        "boot a kernel with CONFIG_CGROUP_BPF and CONFIG_BPF_SYSCALL",
        ("device_program",),
    ),
    Check(
        "landlock",
        _landlock,
        "files, if a mount that should not be there ever is: only the mount tree stands before them",
        "boot Linux 5.13 or later with CONFIG_SECURITY_LANDLOCK",
        ("landlock",),
    ),
    _landlock_since(4, "network", "6.7", "TCP, if the network namespace ever fails: nothing stands behind it"),
    _landlock_since(5, "ioctl", "6.10", "ioctl on a device node that should not be there"),
    _landlock_since(6, "scopes", "6.12", "abstract sockets and signals, if a namespace ever fails"),
    Check(
        "seccomp",
        _seccomp,
        "the whole kernel: some 350 system calls instead of the few that a worker needs",
        "boot a kernel with CONFIG_SECCOMP_FILTER",
        ("seccomp",),
    ),
    Check(
        "libseccomp",
        _libseccomp,
        "the whole kernel, as without seccomp: the filter cannot be made",
        "apt-get install libseccomp2",
        ("seccomp",),
    ),
    Check(
        "readable python",
        _readable,
        "nothing, but no slot starts: workers read Python and its packages under users of their own",
        "chmod -R o+rX the folder of the interpreter and that of the virtual environment",
    ),
    Check(
        "shared memory",
        _shm,
        "nothing, but large tensors find no room: they travel through /dev/shm",
        "mount -o remount,size=50% /dev/shm",
    ),
    Check(
        "systemd units",
        _units,
        "daemon and router themselves: without their units they run without walls of their own",
        "units, sysusers.d and tmpfiles.d: the commands under Install in systemd/README.md",
        required=False,
    ),
    Check(
        "nvidia driver",
        _nvidia,
        "nothing: without one, slices are processor cores",
        "install the NVIDIA driver",
        required=False,
    ),
)
