"""What this machine is: everything that somebody who reads the figures later may ask."""

import ctypes
import importlib.metadata
import os
import platform
import resource
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Final

from tests.gpu.cuda import ATTRIBUTES, Cuda, find_nodes
from tests.gpu.kernel_log import KernelLog, find_xids
from tests.gpu.report import Report, explain

_LONGEST: Final = 24_000
_PROGRAMS: Final = {
    "nvidia-smi": ("nvidia-smi",),
    "nvidia-smi -q": ("nvidia-smi", "-q"),
    "nvidia-smi mig -lgip": ("nvidia-smi", "mig", "-lgip"),
    "nvidia-smi mig -lgipp": ("nvidia-smi", "mig", "-lgipp"),
    "nvidia-smi compute-policy -l": ("nvidia-smi", "compute-policy", "-l"),
    "nvcc --version": ("nvcc", "--version"),
    "lscpu": ("lscpu",),
}
_FILES: Final = (
    *("/proc/driver/nvidia/version", "/proc/driver/nvidia/params", "/proc/driver/nvidia/registry"),
    *("/proc/cgroups", "/proc/meminfo", "/proc/sys/kernel/yama/ptrace_scope", "/sys/kernel/security/lsm"),
    *("/sys/fs/cgroup/cgroup.controllers", "/sys/fs/cgroup/dmem.capacity", "/sys/module/nvidia/version"),
    *("/sys/fs/cgroup/misc.capacity", "/sys/kernel/mm/transparent_hugepage/enabled", "/proc/sys/vm/overcommit_memory"),
)
#: Lines that name this one card, which nobody needs to know.
_NAMES: Final = ("uuid", "serial", "part number", "guid", "board id")


def check(report: Report) -> None:
    """Rows of what a design depends on; the rest into the report."""
    report.data(kernel=platform.release(), machine=platform.machine(), cores=len(os.sched_getaffinity(0)))
    report.data(limits={name: resource.getrlimit(getattr(resource, name)) for name in ("RLIMIT_MEMLOCK", "RLIMIT_AS")})
    report.data(files={path: _read(path) for path in _FILES}, packages=_find_packages())
    _show_nodes(report)
    _show_cgroups(report)
    _show_cuda(report)
    report.data(programs={name: _run(command) for name, command in _PROGRAMS.items()})


def check_log(report: Report) -> None:
    """What the driver wrote into the kernel's log since the machine started."""
    log = KernelLog(whole=True)
    lines = log.read()
    log.close()
    xids = find_xids(lines)
    report.data(lines=lines)
    report.row(
        "Xids since the start", f"{xids or 'none'}", "13, 31 and 43 or 45 from T4", not set(xids) - {13, 31, 43, 45}
    )


def _show_nodes(report: Report) -> None:
    nodes = {}
    for path in find_nodes():
        status = os.stat(path)
        major, minor = os.major(status.st_rdev), os.minor(status.st_rdev)
        nodes[path] = f"{stat.filemode(status.st_mode)} {status.st_uid}:{status.st_gid} {major}:{minor}"
    devices = [line.strip() for line in _read("/proc/devices").splitlines() if "nvidia" in line]
    places = ("/proc/driver/nvidia", "/proc/driver/nvidia-caps", "/proc/driver/nvidia-nvlink")
    found = {place: _walk(place) for place in places}
    report.data(nodes=nodes, devices=devices, found=found)
    report.row(
        "device nodes", ", ".join(f"{path.removeprefix('/dev/')} {text.split()[-1]}" for path, text in nodes.items())
    )


def _walk(folder: str) -> dict[str, str]:
    """Each file below with what is in it; the driver's files in /proc are short."""
    return {str(path): _read(path)[:1500] for path in sorted(Path(folder).rglob("*"))[:120] if path.is_file()}


def _show_cgroups(report: Report) -> None:
    with report.step("cgroups"):
        mounts = [line.split() for line in _read("/proc/mounts").splitlines()]
        kinds = {mount[1]: f"{mount[2]} {mount[3]}" for mount in mounts if mount[2].startswith("cgroup")}
        controllers = _read("/sys/fs/cgroup/cgroup.controllers").strip()
        report.data(cgroup_mounts=kinds)
        dmem = "dmem" if "dmem" in controllers.split() else "no dmem"
        version = "v2" if controllers else f"{len(kinds)} mounts of v1" if kinds else "none mounted"
        report.row("cgroups, kernel", f"{version} ({controllers or '-'}; {dmem}), {platform.release()}")


def _show_cuda(report: Report) -> None:
    with report.step("CUDA"):
        cuda = Cuda()
        version = ctypes.c_int()
        cuda.call("cuDriverGetVersion", ctypes.byref(version))
        cuda.init()
        attributes = {name: _attribute(cuda, number) for name, number in ATTRIBUTES.items()}
        capability = f"{cuda.attribute(75)}.{cuda.attribute(76)}"
        report.data(cuda=attributes, capability=capability, cuda_driver=version.value)
        report.row("CUDA", f"{version.value}, compute capability {capability}, {attributes['multiprocessors']} SMs")


def _attribute(cuda: Cuda, number: int) -> int | str:
    try:
        return cuda.attribute(number)
    except Exception as e:  # noqa: BLE001 - a driver may not know the attribute
        return explain(e)


def _find_packages() -> dict[str, str]:
    names = ("torch", "nvidia-ml-py", "numpy", "triton", "nvidia-cuda-runtime", "nvidia-cublas", "nvidia-cudnn-cu13")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def _read(path: str | Path) -> str:
    try:
        return _leave_names_out(Path(path).read_text(errors="replace"))
    except OSError as e:
        return f"({e.strerror})" if str(path).startswith("/proc/driver") else ""


def _run(command: tuple[str, ...]) -> str:
    if not shutil.which(command[0]):
        return "(not installed)"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=8, check=False, errors="replace")
    except subprocess.TimeoutExpired:
        return "(not done after 8 s)"
    return _leave_names_out(done.stdout + done.stderr)


def _leave_names_out(text: str) -> str:
    lines = (line for line in text.splitlines(keepends=True) if not any(name in line.lower() for name in _NAMES))
    return "".join(lines)[:_LONGEST]
