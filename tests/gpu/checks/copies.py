"""Host memory for the GPU: pinned, pageable, memfds, memfds that are registered; how each is copied from."""

import ctypes
import fcntl
import mmap
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from tests.gpu.figures import GIB, MIB, summarise
from tests.gpu.gpu import Gpu
from tests.gpu.report import Report

_SIZES: Final = {"1 KiB": (1024, 500), "1 MiB": (MIB, 200), "64 MiB": (64 * MIB, 12)}
_BIGGEST: Final = 64 * MIB
_READ_ONLY: Final = 8
_MAPPED: Final = 2
_RING_BYTES: Final = 64 * MIB
_SEALS: Final = {
    "": 0,
    "sealed against future writes": fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | getattr(fcntl, "F_SEAL_FUTURE_WRITE", 16),
    "sealed": fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE,
}


class Memfd:
    """A memfd of one size with every page there, sealed, then mapped; *address* is where."""

    def __init__(self, size: int, *, writable: bool, seals: int = 0, shared: bool = True) -> None:
        self.size = size
        file = os.memfd_create("bedsit-gpu-check", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.truncate(file, size)
        part = b"\x5a" * MIB
        for at in range(0, size, MIB):
            os.pwrite(file, part[: size - at], at)
        if seals:
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        # JUSTIFICATION: Python's mmap hands out no address of a read-only mapping.
        # SAFETY: a whole file of this size is mapped, and stays mapped until the process ends.
        call = ctypes.CDLL(None, use_errno=True).mmap
        call.restype = ctypes.c_void_p
        call.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *([ctypes.c_int] * 3), ctypes.c_long]
        flags = (mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE) | getattr(mmap, "MAP_POPULATE", 0x8000)
        self.address = call(None, size, protection, flags, file, 0)
        os.close(file)
        if self.address == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), f"mmap: {os.strerror(ctypes.get_errno())}")


def check(report: Report) -> None:
    """Copies of three sizes from each kind, what registering costs, reading in place, and the ring for sealed files."""
    gpu = Gpu()
    gpu.calibrate()
    room = gpu.cuda.allocate(2 * _BIGGEST)
    pinned = ctypes.c_void_p()
    gpu.cuda.call("cuMemHostAlloc", ctypes.byref(pinned), _BIGGEST, _MAPPED)
    assert pinned.value
    ctypes.memset(pinned.value, 1, _BIGGEST)
    _copy(report, gpu, room, "pinned", pinned.value, expect="50+ GB/s", least=50)
    with report.step("pageable"):
        pageable = ctypes.create_string_buffer(b"\1" * _BIGGEST, _BIGGEST)
        _copy(report, gpu, room, "pageable", ctypes.addressof(pageable), expect="10-20 GB/s", least=10, most=20)
    with report.step("memfd, plain"):
        _copy(report, gpu, room, "memfd, plain", Memfd(_BIGGEST, writable=True).address)
    with report.step("memfd, sealed and read-only"):
        sealed = Memfd(_BIGGEST, writable=False, seals=_SEALS["sealed"])
        _copy(report, gpu, room, "memfd, sealed and read-only", sealed.address)
    _register_all(report, gpu, room)
    with report.step("copy back, pinned"):
        _copy_back(report, gpu, room, pinned.value)
    with report.step("reading pinned memory in place"):
        _read_in_place(report, gpu, pinned.value)
    with report.step("ring from a sealed memfd"):
        _ring(report, gpu, room)


def _copy(
    report: Report,
    gpu: Gpu,
    room: int,
    what: str,
    source: int,
    *,
    expect: str = "",
    least: float = 0,
    most: float = 1e9,
) -> float:
    """Copy each size often; one row, the rate of the largest is what is held to the expectation."""
    texts, rate, data = [], 0.0, {}
    for name, (size, times) in _SIZES.items():
        samples = []
        for _ in range(report.times(times, 5) + 2):
            began = time.perf_counter()
            gpu.cuda.call("cuMemcpyHtoDAsync_v2", room, source, size, None)
            gpu.cuda.synchronize()
            samples.append((time.perf_counter() - began) * 1e6)
        data[name] = summarise(samples[2:])
        rate = size / data[name]["p50"] / 1e3
        texts.append(f"{name} {data[name]['p50']:.1f} us" if size < _BIGGEST else f"{name} {rate:.1f} GB/s")
    ok = least <= rate <= most if expect else None
    report.row(f"H2D, {what}", ", ".join(texts), expect, ok, us=data)
    return rate


def _register_all(report: Report, gpu: Gpu, room: int) -> None:
    """Each kind of mapping of a memfd, registered as what it is."""
    kinds = [
        ("memfd, writable", {"writable": True}, 0),
        ("memfd, writable, as read-only", {"writable": True}, _READ_ONLY),
        ("memfd, read-only mapping", {"writable": False}, 0),
        ("memfd, read-only mapping, as read-only", {"writable": False}, _READ_ONLY),
        *(
            (f"memfd, {name}, as read-only", {"writable": False, "seals": seals}, _READ_ONLY)
            for name, seals in _SEALS.items()
            if name
        ),
        ("memfd, private read-only, as read-only", {"writable": False, "shared": False}, _READ_ONLY),
    ]
    for what, how, flags in kinds:
        with report.step(f"register {what}"):
            memfd = Memfd(_BIGGEST, **how)  # type: ignore[arg-type]
            began = time.perf_counter()
            code = gpu.cuda.ask("cuMemHostRegister_v2", memfd.address, memfd.size, _MAPPED | flags)
            took = (time.perf_counter() - began) * 1e3
            if code:
                report.row(f"register {what}", f"refused: {gpu.cuda.name(code)}", "", None, code=code)
                continue
            report.row(f"register {what}", f"{took:.1f} ms for 64 MiB", "", None)
            _copy(report, gpu, room, f"registered {what}", memfd.address)
            _read_mapped(report, gpu, what, memfd.address)
            began = time.perf_counter()
            gpu.cuda.call("cuMemHostUnregister", memfd.address)
            report.data(**{f"unregister {what} ms": (time.perf_counter() - began) * 1e3})


def _read_mapped(report: Report, gpu: Gpu, what: str, address: int) -> None:
    """Whether a kernel can read the registered memory where it is."""
    with report.step(f"read {what} in place"):
        device = _find_device_address(gpu, address)
        right = gpu.sum(device, _BIGGEST) == 0x5A5A5A5A * (_BIGGEST // 4)
        report.data(**{f"read {what} in place": "right" if right else "wrong"})


def _find_device_address(gpu: Gpu, address: int) -> int:
    device = ctypes.c_uint64()
    gpu.cuda.call("cuMemHostGetDevicePointer_v2", ctypes.byref(device), address, 0)
    return device.value


def _copy_back(report: Report, gpu: Gpu, room: int, target: int) -> None:
    texts = []
    for name, (size, times) in _SIZES.items():
        us = _time(
            lambda size=size: gpu.cuda.call("cuMemcpyDtoHAsync_v2", target, room, size, None),  # type: ignore[misc]
            gpu,
            report.times(times, 5),
        )
        texts.append(f"{name} {us:.1f} us" if size < _BIGGEST else f"{name} {size / us / 1e3:.1f} GB/s")
    report.row("D2H, pinned", ", ".join(texts))


def _read_in_place(report: Report, gpu: Gpu, address: int) -> None:
    device = _find_device_address(gpu, address)
    texts = []
    for name, (size, times) in _SIZES.items():
        us = _time(lambda size=size: gpu.queue_sum(device, size), gpu, report.times(times, 5))  # type: ignore[misc]
        texts.append(f"{name} {us:.1f} us" if size < _BIGGEST else f"{name} {size / us / 1e3:.1f} GB/s")
    report.row("a kernel reads pinned memory in place", ", ".join(texts))


def _time(act: Callable[[], None], gpu: Gpu, times: int) -> float:
    samples = []
    for _ in range(times + 2):
        began = time.perf_counter()
        act()
        gpu.cuda.synchronize()
        samples.append((time.perf_counter() - began) * 1e6)
    return summarise(samples[2:])["p50"]


def _ring(report: Report, gpu: Gpu, room: int) -> None:
    """Copy a sealed file through two pinned buffers, while one travels the other is filled by several threads."""
    size = max(_RING_BYTES * 4, int(GIB * min(report.scale, 1.0)) // _RING_BYTES * _RING_BYTES)
    source = Memfd(size, writable=False, seals=_SEALS["sealed"])
    buffers, events, stream = [], [], gpu.cuda.stream()
    for _ in range(2):
        buffer = ctypes.c_void_p()
        gpu.cuda.call("cuMemHostAlloc", ctypes.byref(buffer), _RING_BYTES, 0)
        assert buffer.value
        ctypes.memset(buffer.value, 0, _RING_BYTES)
        buffers.append(buffer.value)
        events.append(gpu.cuda.event())
    for threads in (1, 4, 8):
        part = _RING_BYTES // threads
        with ThreadPoolExecutor(threads) as pool:
            rates = []
            for _ in range(3):
                began = time.perf_counter()
                for number in range(size // _RING_BYTES):
                    buffer, event = buffers[number % 2], events[number % 2]
                    assert source.address
                    begin = source.address + number * _RING_BYTES
                    if number > 1:
                        gpu.cuda.call("cuEventSynchronize", event)
                    moves = [
                        pool.submit(ctypes.memmove, buffer + at * part, begin + at * part, part)
                        for at in range(threads)
                    ]
                    for move in moves:
                        move.result()
                    gpu.cuda.call("cuMemcpyHtoDAsync_v2", room, buffer, _RING_BYTES, stream)
                    gpu.cuda.call("cuEventRecord", event, stream)
                gpu.cuda.call("cuStreamSynchronize", stream)
                rates.append(size / (time.perf_counter() - began) / 1e9)
        best = max(rates)
        ok = best >= 40 if threads == 8 else None
        expect = "40+ GB/s" if threads == 8 else ""
        report.row(f"sealed memfd through 2 x 64 MiB, {threads} threads", f"{best:.1f} GB/s", expect, ok, rates=rates)
