"""Memory shared by IPC handles: who keeps it alive when a consumer is killed."""

import pickle
import socket
from contextlib import ExitStack
from multiprocessing.reduction import ForkingPickler
from typing import Any, Final

from tests.gpu.nvml import Nvml, await_true
from tests.gpu.peer import Peer, serve
from tests.gpu.report import Report

_GIB: Final = 2
_NEAR_MIB: Final = 400.0


def share(sock: socket.socket) -> None:
    """A peer with torch that gives a tensor away or takes one."""
    import torch
    import torch.multiprocessing

    held: dict[str, Any] = {}

    def start() -> None:
        torch.zeros(1, device="cuda")
        torch.cuda.synchronize()
        torch.cuda.empty_cache()

    def make(gib: int) -> dict[str, Any]:
        held["tensor"] = torch.full((gib << 30,), 7, dtype=torch.uint8, device="cuda")
        torch.cuda.synchronize()
        return {"tensor": bytes(ForkingPickler.dumps(held["tensor"])).hex()}

    def take(tensor: str) -> dict[str, Any]:
        # Between two processes of this check; nobody else can reach the socket.
        held["tensor"] = pickle.loads(bytes.fromhex(tensor))
        return {"first": int(held["tensor"][0].item())}

    def drop() -> dict[str, Any]:
        held.clear()
        torch.cuda.ipc_collect()
        torch.cuda.empty_cache()
        return {"reserved": torch.cuda.memory_reserved()}

    serve(sock, {"open": start, "make": make, "take": take, "drop": drop})


def check(report: Report) -> None:
    """torch's own sharing, then the driver's handles without torch."""
    with Nvml() as nvml:
        with report.step("torch: consumer killed"), ExitStack() as stack:
            _check_torch(report, nvml, stack)
        nvml.settle()
        with report.step("IPC handle: consumer killed"), ExitStack() as stack:
            _check_raw(report, nvml, stack)


def _check_torch(report: Report, nvml: Nvml, stack: ExitStack) -> None:
    maker, taker = (stack.enter_context(Peer("checks.ipc:share")) for _ in range(2))
    # Contexts first, so that the figures are the tensor's.
    for peer in (maker, taker):
        peer.tell("open")
    for peer in (maker, taker):
        peer.hear(40)
    given = maker.ask("make", gib=_GIB)["tensor"]
    first = taker.ask("take", tensor=given)["first"]
    held = nvml.used_mib()
    taker.kill()
    taker.process.wait(10)
    reserved = maker.ask("drop")["reserved"]
    await_true(lambda: held - nvml.used_mib() > _GIB * 1024 - _NEAR_MIB, 2)
    after = nvml.used_mib()
    maker.leave()
    ended = nvml.settle()
    is_held = reserved > 0
    report.row(
        "torch's tensor, consumer killed, producer drops it",
        f"read {first}; reserved {reserved >> 20}, GPU {held - after:.0f} MiB less; {held - ended:.0f} less at its end",
        "held until the producer exits",
        is_held and first == 7,
    )


def _check_raw(report: Report, nvml: Nvml, stack: ExitStack) -> None:
    maker, taker = (stack.enter_context(Peer("holder:hold")) for _ in range(2))
    for peer in (maker, taker):
        peer.ask("open")
    empty = nvml.used_mib()
    maker.ask("allocate", gib=_GIB, byte=7, block_gib=_GIB)
    expected = maker.ask("sum")["sum"]
    taker.ask("take", **{key: value for key, value in maker.ask("give").items() if key != "descriptors"})
    is_same = taker.ask("sum")["sum"] == expected
    maker.ask("free")
    freed = nvml.used_mib() - empty
    still = taker.ask("sum")["sum"] == expected
    taker.kill()
    taker.process.wait(10)
    took = await_true(lambda: nvml.used_mib() - empty < _NEAR_MIB / 2, 4)
    report.row(
        "IPC handle: read by another process",
        "the same" if is_same else "differs",
        "the same",
        is_same,
    )
    report.row("IPC handle: owner frees while it is open", f"{freed:.0f} MiB still used, readable: {still}")
    gone = "not free after 4 s" if took is None else f"free after {took * 1e3:.0f} ms"
    report.row("IPC handle: then the consumer is killed", gone)
