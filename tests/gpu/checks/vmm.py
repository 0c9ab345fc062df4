"""Memory handles as descriptors (cuMemCreate): read-only maps, who can write all the same, who keeps it alive."""

import ctypes
import os
import socket
from contextlib import ExitStack
from typing import Any, Final

from tests.gpu.figures import GIB
from tests.gpu.gpu import Gpu
from tests.gpu.nvml import Nvml, await_true
from tests.gpu.peer import Peer, PeerError, serve
from tests.gpu.report import Report
from tests.gpu.suspender import start_suspender

_GIB: Final = 2
_BYTE: Final = 0x5A
_READ, _READ_WRITE = 1, 3
_ILLEGAL_ADDRESS: Final = 700
_SUSPEND_WAIT_S: Final = 6.0


class Location(ctypes.Structure):
    """CUmemLocation."""

    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class Properties(ctypes.Structure):
    """CUmemAllocationProp; what follows its pointer is zero here."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("handle_types", ctypes.c_int),
        ("location", Location),
        ("metadata", ctypes.c_void_p),
        ("flags", ctypes.c_ubyte * 8),
    )


class Access(ctypes.Structure):
    """CUmemAccessDesc."""

    _fields_ = (("location", Location), ("flags", ctypes.c_int))


class Part:
    """One process that has the memory; handlers of the words."""

    def __init__(self) -> None:
        self._gpu: Any = None
        self._handle = ctypes.c_uint64()
        self._address = ctypes.c_uint64()
        self._size = _GIB * GIB

    def open(self) -> dict[str, Any]:
        """Make the context."""
        self._gpu = Gpu()
        return {}

    def make(self) -> dict[str, Any]:
        """Make the memory, map it, fill it; a descriptor of it goes to the check."""
        wanted = Properties(1, 1, Location(1, 0))
        cuda = self._gpu.cuda
        cuda.call("cuMemCreate", ctypes.byref(self._handle), self._size, ctypes.byref(wanted), 0)
        self._map(_READ_WRITE)
        cuda.fill(self._address.value, self._size, _BYTE)
        file = ctypes.c_int(-1)
        cuda.call("cuMemExportToShareableHandle", ctypes.byref(file), self._handle, 1, 0)
        return {"send": [file.value]}

    def take(self, descriptors: list[int], flags: int) -> dict[str, Any]:
        """Import what the descriptor stands for, and map it with these rights."""
        cuda = self._gpu.cuda
        cuda.call("cuMemImportFromShareableHandle", ctypes.byref(self._handle), descriptors[0], 1)
        os.close(descriptors[0])
        self._map(flags)
        return {}

    def widen(self) -> dict[str, Any]:
        """Ask for write access to what is mapped read-only."""
        access = Access(Location(1, 0), _READ_WRITE)
        code = self._gpu.cuda.ask("cuMemSetAccess", self._address, self._size, ctypes.byref(access), 1)
        return {"code": code, "name": self._gpu.cuda.name(code)}

    def _map(self, flags: int) -> None:
        cuda = self._gpu.cuda
        cuda.call("cuMemAddressReserve", ctypes.byref(self._address), self._size, 0, 0, 0)
        cuda.call("cuMemMap", self._address, self._size, 0, self._handle, 0)
        access = Access(Location(1, 0), flags)
        cuda.call("cuMemSetAccess", self._address, self._size, ctypes.byref(access), 1)

    def sum(self) -> dict[str, Any]:
        """Of all words."""
        return {"sum": self._gpu.sum(self._address.value, self._size)}

    def write(self, word: int) -> dict[str, Any]:
        """Store one word at the beginning; the code that came of it."""
        code = self._gpu.poke(self._address.value, word)
        return {"code": code, "name": self._gpu.cuda.name(code)}

    def drop(self) -> dict[str, Any]:
        """Unmap it and let go of the handle."""
        cuda = self._gpu.cuda
        cuda.call("cuMemUnmap", self._address, self._size)
        cuda.call("cuMemRelease", self._handle)
        return {}


def take_part(sock: socket.socket) -> None:
    """The peer."""
    part = Part()
    words = ("open", "make", "take", "widen", "sum", "write", "drop")
    serve(sock, {word: getattr(part, word) for word in words})


def check(report: Report) -> None:
    """An owner and readers, one of them hostile; deaths on either side, a suspended reader, a descriptor alone."""
    with Nvml() as nvml, ExitStack() as stack:
        owner, stray, hostile, reader, late = (stack.enter_context(Peer("checks.vmm:take_part")) for _ in range(5))
        for peer in (owner, stray, hostile, reader, late):
            peer.tell("open")
        for peer in (owner, stray, hostile, reader, late):
            peer.hear()
        (file,) = owner.ask("make")["descriptors"]
        expected = owner.ask("sum")["sum"]
        _check_rights(report, owner, stray, hostile, file, expected)
        expected = owner.ask("sum")["sum"]
        with report.step("reader killed"):
            hostile.kill()
            hostile.process.wait(10)
            report.row("owner after a reader's kill -9", *_compare(owner, expected))
        with report.step("owner drops it"):
            reader.ask("take", file, flags=_READ_WRITE)
            os.close(file)
            owner.ask("drop")
            report.row("reader after owner unmapped and released", *_compare(reader, expected))
        with report.step("owner killed"):
            owner.kill()
            owner.process.wait(10)
            report.row("reader after the owner's kill -9", *_compare(reader, expected))
        with report.step("suspending a reader"):
            _check_suspended(report, reader, expected)
        with report.step("the last one leaves"):
            before = nvml.used_mib()
            reader.kill()
            took = await_true(lambda: before - nvml.used_mib() >= _GIB * 1024, 5)
            left = before - nvml.used_mib()
            figure = f"{left:.0f} MiB less" + ("" if took is None else f" after {took * 1e3:.0f} ms")
            report.row("the last one that has it, killed", figure, f"{_GIB} GiB and a context", took is not None)
        with report.step("a descriptor alone"):
            _check_descriptor_alone(report, nvml, stack, late, expected)


def _check_rights(report: Report, owner: Peer, stray: Peer, hostile: Peer, file: int, expected: int) -> None:
    with report.step("read-only map"):
        stray.ask("take", file, flags=_READ)
        report.row("read-only map reads", *_compare(stray, expected))
        wrote = stray.ask("write", word=1)
        report.row("a write to it", wrote["name"], "ILLEGAL_ADDRESS", wrote["code"] == _ILLEGAL_ADDRESS)
        report.row("owner after that", *_compare(owner, expected))
        try:
            after = "works" if stray.ask("sum")["sum"] == expected else "reads something else"
        except PeerError as e:
            after = str(e)[:60]
        report.row("the writer after that", after, "its context is gone", after != "works")
    with report.step("import for writing"):
        hostile.ask("take", file, flags=_READ)
        widened = hostile.ask("widen")
        report.row("read-only map made writable by its reader", widened["name"], "SUCCESS", widened["code"] == 0)
        wrote = hostile.ask("write", word=1)
        changed = owner.ask("sum")["sum"] != expected
        figure = f"{wrote['name']}, owner sees {'it' if changed else 'nothing'}"
        report.row("a write through it", figure, "succeeds: no boundary", changed)


def _compare(peer: Peer, expected: int, wait_s: float = 10.0) -> tuple[str, str, bool]:
    is_same = peer.ask("sum", wait_s=wait_s)["sum"] == expected
    return "the same" if is_same else "differs", "the same", is_same


def _check_suspended(report: Report, reader: Peer, expected: int) -> None:
    with start_suspender() as suspender:
        try:
            locked = suspender.ask("lock", pid=reader.pid, timeout_ms=2000, wait_s=_SUSPEND_WAIT_S)
            gone = suspender.ask("checkpoint", pid=reader.pid, wait_s=_SUSPEND_WAIT_S)
            figure = f"lock {locked['name']}, checkpoint {gone['name']} {gone['ms']:.0f} ms"
            is_refused = gone["code"] != 0
            if not is_refused:
                back = suspender.ask("restore", pid=reader.pid, wait_s=_SUSPEND_WAIT_S)
                figure += f", restore {back['name']}"
            free = suspender.ask("unlock", pid=reader.pid, wait_s=_SUSPEND_WAIT_S)
            figure += f", unlock {free['name']}"
        except TimeoutError as e:
            suspender.kill()
            figure, is_refused = f"hangs: {e}", True
        report.row("suspending a process with imported memory", figure, "fails or hangs", is_refused)
    report.row("that process after it", *_compare(reader, expected))


def _check_descriptor_alone(report: Report, nvml: Nvml, stack: ExitStack, late: Peer, expected: int) -> None:
    before = nvml.settle(1.0)
    maker = stack.enter_context(Peer("checks.vmm:take_part"))
    maker.ask("open")
    (file,) = maker.ask("make")["descriptors"]
    written = maker.ask("sum")["sum"]
    maker.kill()
    maker.process.wait(10)
    # Nobody but this process has it now, and this one has no context.
    used = nvml.used_mib() - before
    late.ask("take", file, flags=_READ_WRITE)
    os.close(file)
    report.row(
        "a descriptor alone, without any process' context", f"{used:.0f} MiB still used", "memory stays", used > 1024
    )
    report.row("imported from it after its maker's death", *_compare(late, written))
    report.data(expected=expected, written=written)
