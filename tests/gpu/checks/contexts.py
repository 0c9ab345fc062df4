"""What a CUDA context costs in time and memory, bare and with torch, cold and warm."""

import os
import socket
import statistics
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from ctypes import c_uint32, c_uint64
from typing import Any, Final

from tests.gpu.cuda import Cuda
from tests.gpu.gpu import read_memory_kib
from tests.gpu.kernels import Kernels
from tests.gpu.nvml import Nvml
from tests.gpu.peer import Peer, serve
from tests.gpu.report import Report

_BARE: Final = ("init", "context", "module", "kernel")
_TORCH: Final = ("import", "init", "tensor", "gemm")


class Bare:
    """Step by step, each answers how long it took."""

    def __init__(self) -> None:
        self._cuda = Cuda()

    def init(self) -> dict[str, Any]:
        """The driver."""
        return _time(self._cuda.init)

    def context(self) -> dict[str, Any]:
        """The context."""
        return _time(self._cuda.retain)

    def module(self) -> dict[str, Any]:
        """The kernels' module, compiled by the driver."""
        self._kernels: Any = None

        def load() -> None:
            self._kernels = Kernels(self._cuda)

        return _time(load) | {"compiled_by": self._kernels.compiled_by}

    def kernel(self) -> dict[str, Any]:
        """The first kernel, until it is done."""

        def run() -> None:
            self._kernels.launch("shared_fill", 1, 32, c_uint32(0), c_uint64(self._cuda.allocate(4096)))
            self._cuda.synchronize()

        return _time(run)

    def kib(self) -> dict[str, Any]:
        """Host memory and threads of this process."""
        return read_memory_kib() | {"threads": len(os.listdir("/proc/self/task"))}


def _time(step: Any) -> dict[str, Any]:
    began = time.monotonic()
    step()
    return {"ms": (time.monotonic() - began) * 1e3}


def open_bare(sock: socket.socket) -> None:
    """The peer without torch."""
    bare = Bare()
    serve(sock, {word: getattr(bare, word) for word in (*_BARE, "kib")})


def open_torch(sock: socket.socket) -> None:
    """The peer with torch."""
    held: dict[str, Any] = {}

    def load() -> None:
        import torch

        held["torch"] = torch

    def start() -> None:
        held["torch"].cuda.init()

    def make() -> None:
        held["tensor"] = held["torch"].zeros(1, device="cuda")
        held["torch"].cuda.synchronize()

    def multiply() -> None:
        torch = held["torch"]
        square = torch.ones(1024, 1024, device="cuda", dtype=torch.bfloat16)
        held["product"] = square @ square
        torch.cuda.synchronize()

    steps = {"import": load, "init": start, "tensor": make, "gemm": multiply}
    handlers: dict[str, Any] = {word: (lambda step=step: _time(step)) for word, step in steps.items()}
    serve(sock, handlers | {"kib": lambda: read_memory_kib() | {"threads": len(os.listdir("/proc/self/task"))}})


def check(report: Report) -> None:
    """The very first one, then with the GPU held open: warm, with files read anew, several at once, with torch."""
    with report.step("the first CUDA process, the GPU not held open"):
        # Before NVML: that holds it open, too.
        first = _walk(None, "bare", _BARE)
        report.row("the first CUDA process, the GPU not held open", _tell(first, _BARE), "", **first)
    with Nvml() as nvml:
        # As `keep` in child.py does for later checks.
        held = os.open("/dev/nvidia0", os.O_RDWR | os.O_CLOEXEC)
        with report.step("a context, warm"):
            _measure_warm(report, nvml)
        with report.step("a context, the driver's files not in the page cache"):
            _measure_cold(report, nvml)
        with report.step("4 contexts at once"):
            _measure_several(report, nvml)
        with report.step("torch"):
            _measure_torch(report, nvml)
        os.close(held)


def _measure_warm(report: Report, nvml: Nvml) -> None:
    runs = [_walk(nvml, "bare", _BARE) for _ in range(report.times(3, 2))]
    middle = _middle(runs, _BARE)
    both = middle["init"] + middle["context"]
    report.row(
        "a context, warm",
        f"{_tell(middle, _BARE)} (n {len(runs)})",
        "cuInit + context 200-800 ms",
        200 <= both <= 800,
        runs=runs,
    )
    own, whole = runs[-1]["own_mib"], runs[-1]["device_mib"]
    report.row(
        "memory of a context",
        f"NVML {_mib(own)} of its own, GPU {whole:.0f} MiB",
        "450-650 MiB",
        450 <= (own or whole) <= 650,
        steps=runs[-1]["steps"],
        kib=runs[-1]["kib"],
    )
    kib = runs[-1]["kib"]
    report.row(
        "its host side",
        f"RSS {kib['VmRSS'] / 1024:.0f} MiB, size {kib['VmSize'] / 1024**2:.1f} GiB, "
        f"{kib['threads']} threads, locked {kib.get('VmLck', 0)} kB, pinned {kib.get('VmPin', 0)} kB",
    )


def _measure_cold(report: Report, nvml: Nvml) -> None:
    with Peer("checks.contexts:open_bare") as peer:
        for step in _BARE:
            peer.ask(step)
        files = _find_mapped(peer.pid)
    dropped = sum(_drop(file) for file in files)
    cold = _walk(nvml, "bare", _BARE)
    what = "a context, the driver's files not in the page cache"
    report.row(what, f"{_tell(cold, _BARE)} ({dropped} of {len(files)} files dropped)", "", files=files, **cold)


def _find_mapped(pid: int) -> list[str]:
    with open(f"/proc/{pid}/maps") as maps:
        paths = {line.split(maxsplit=5)[5].strip() for line in maps if len(line.split(maxsplit=5)) == 6}
    return sorted(path for path in paths if ("nvidia" in path or "cuda" in path) and not path.startswith("/dev/"))


def _drop(path: str) -> bool:
    """Ask the kernel to forget a file's pages; it keeps those that somebody maps."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)
    return True


def _measure_several(report: Report, nvml: Nvml) -> None:
    count = 4
    before = nvml.settle()
    with ExitStack() as stack:
        peers = [stack.enter_context(Peer("checks.contexts:open_bare")) for _ in range(count)]
        times: dict[str, float] = {}
        for step in _BARE:
            for peer in peers:
                peer.tell(step)
            times[step] = max(peer.hear()["ms"] for peer in peers)
        each = (nvml.used_mib() - before) / count
        report.row(f"{count} contexts at once, the slowest", f"{_tell(times, _BARE)}, {each:.0f} MiB each", "", **times)


def _measure_torch(report: Report, nvml: Nvml) -> None:
    first = _walk(nvml, "torch", _TORCH, wait_s=70)
    report.row("torch, its first import here", _tell(first, _TORCH), "", **first)
    runs = [_walk(nvml, "torch", _TORCH) for _ in range(report.times(1))]
    middle = _middle(runs, _TORCH)
    both = middle["init"] + middle["tensor"]
    report.row("torch, warm", _tell(middle, _TORCH), "import 2-4 s", 2000 <= middle["import"] <= 4000, runs=runs)
    report.row("torch: context", f"{both:.0f} ms", "200-800 ms", 200 <= both <= 800)
    steps = {name: f"{_mib(own)}/{whole:.0f}" for name, (own, whole) in runs[-1]["steps"].items()}
    kib = runs[-1]["kib"]
    report.row(
        "torch: memory after each step, own/GPU MiB",
        f"{steps}, RSS {kib['VmRSS'] / 1024:.0f} MiB",
        "context, then cuBLAS workspace",
        **runs[-1],
    )


def _walk(nvml: Nvml | None, kind: str, steps: Iterable[str], wait_s: float = 25.0) -> dict[str, Any]:
    """One process through all steps: ms of each, and with *nvml* the memory after each."""
    before = nvml.settle() if nvml else 0.0
    result: dict[str, Any] = {"steps": {}}
    began = time.monotonic()
    with Peer(f"checks.contexts:open_{kind}", wait_s=wait_s) as peer:
        for step in steps:
            result[step] = peer.ask(step)["ms"]
            if nvml:
                result["steps"][step] = (nvml.processes_mib().get(peer.pid), nvml.used_mib() - before)
        result["all"] = (time.monotonic() - began) * 1e3
        result["kib"] = peer.ask("kib")
        result["own_mib"], result["device_mib"] = result["steps"].get(step, (None, 0.0))
    return result


def _middle(runs: list[dict[str, Any]], steps: Iterable[str]) -> dict[str, float]:
    return {step: statistics.median(run[step] for run in runs) for step in (*steps, "all")}


def _tell(times: Mapping[str, float], steps: Iterable[str]) -> str:
    text = ", ".join(f"{step} {times[step]:.0f}" for step in steps)
    return f"{text} ms" + (f"; exec to end {times['all']:.0f}" if "all" in times else "")


def _mib(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
