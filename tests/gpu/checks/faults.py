"""One process breaks its context in several ways while another one multiplies: what the other one notices."""

import socket
import time
from typing import Any, Final

from tests.gpu.figures import summarise
from tests.gpu.gpu import Gpu
from tests.gpu.kernel_log import KernelLog, find_xids
from tests.gpu.nvml import Nvml
from tests.gpu.peer import Peer, PeerError, busy, is_called, serve
from tests.gpu.report import Report

_SIDE: Final = 2048
#: Xids of a fault that stays with the process that made it: exception of a kernel, MMU fault, reset of its channel.
_OWN_XIDS: Final = {13, 31, 43, 45}
_CALM_S: Final = 0.4


def multiply(sock: socket.socket) -> None:
    """A peer that multiplies the same matrices until the next word, and compares each result with the first one."""
    import torch

    torch.manual_seed(1)
    held: dict[str, Any] = {}

    def start() -> None:
        held["left"], held["right"] = (torch.randn(_SIDE, _SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        held["digest"] = digest()

    def digest() -> int:
        product = held["left"] @ held["right"]
        return int(product.view(torch.int16).to(torch.int64).sum().item())

    def loop() -> dict[str, Any]:
        samples, wrong, last, longest_at = [], 0, time.monotonic(), 0.0
        while not is_called(sock):
            wrong += digest() != held["digest"]
            now = time.monotonic()
            samples.append((now - last) * 1e3)
            if samples[-1] >= max(samples):
                longest_at = now
            last = now
        return {"latency": summarise(samples), "wrong": wrong, "longest_at": longest_at}

    serve(sock, {"open": start, "loop": loop, "rest": dict})


def fault(sock: socket.socket) -> None:
    """A peer that breaks its own context; each word answers with the code that it got."""
    held: dict[str, Any] = {}

    def start() -> None:
        held["gpu"] = Gpu()

    def answer(code: int) -> dict[str, Any]:
        gpu = held["gpu"]
        after = gpu.cuda.ask("cuCtxSynchronize")
        return {"code": code, "name": gpu.cuda.name(code), "after": gpu.cuda.name(after)}

    def hang() -> None:
        held["gpu"].work_endlessly()

    words = {
        "unmapped address": lambda: answer(held["gpu"].poke(1 << 40, 1)),
        "misaligned address": lambda: answer(held["gpu"].poke(held["gpu"].cuda.allocate(4096) + 1, 1)),
        "trap": lambda: answer(held["gpu"].fall()),
        "hang": hang,
    }
    serve(sock, {"open": start, **words})


def index_wrongly(sock: socket.socket) -> None:
    """A peer whose torch asserts on the device."""
    import torch

    def index() -> dict[str, Any]:
        table = torch.zeros(16, 16, device="cuda")
        torch.cuda.synchronize()
        try:
            table[torch.full((4,), 99, device="cuda")].sum().item()
        except RuntimeError as e:
            return {"name": str(e).splitlines()[0], "code": 710 if "assert" in str(e) else 1, "after": "-"}
        return {"name": "nothing happened", "code": 0, "after": "-"}

    def start() -> None:
        torch.zeros(1, device="cuda").sum().item()

    serve(sock, {"open": start, "index out of bounds": index})


def check(report: Report) -> None:
    """Each fault in a process of its own, beside the same neighbour."""
    with Nvml() as nvml, Peer("checks.faults:multiply") as neighbour:
        asserting = Peer("checks.faults:index_wrongly")
        asserting.tell("open")
        neighbour.ask("open", wait_s=30)
        with busy([neighbour], "loop") as answers:
            time.sleep(_CALM_S)
        calm = answers[0]["latency"]
        report.row("the neighbour alone", f"p50 {calm['p50']:.2f} max {calm['max']:.2f} ms (n {calm['n']})", "", **calm)
        for word, expected in (("unmapped address", (700,)), ("misaligned address", (716,)), ("trap", (715, 719))):
            with report.step(word), Peer("checks.faults:fault") as peer:
                peer.ask("open")
                _break(report, nvml, neighbour, peer, word, expected)
        with report.step("index out of bounds"), asserting:
            asserting.hear(30)
            _break(report, nvml, neighbour, asserting, "index out of bounds", (710,))
        with report.step("kill -9 in a kernel"), Peer("checks.faults:fault") as peer:
            peer.ask("open")
            _break(report, nvml, neighbour, peer, "hang", ())
        status = neighbour.leave()
        report.row("the neighbour's end", f"exit status {status}", "0", status == 0)


def _break(report: Report, nvml: Nvml, neighbour: Peer, peer: Peer, word: str, expected: tuple[int, ...]) -> None:
    """Break the one, and tell what both of them saw."""
    log = _open_log()
    with busy([neighbour], "loop") as answers:
        time.sleep(_CALM_S / 2)
        began = time.monotonic()
        try:
            said = peer.ask(word, wait_s=8)
        except (PeerError, TimeoutError) as e:
            said = {"code": None, "name": str(e)[:80], "after": "-"}
        if word == "hang":
            peer.kill()
            said = {"code": None, "name": "killed", "after": "-"}
        peer.leave(8)
        time.sleep(_CALM_S)
    seen = answers[0]
    lines = log.read() if log else []
    if log:
        log.close()
    xids = find_xids(lines)
    is_own = said["code"] in expected or not expected
    report.row(
        f"{word}: who did it",
        f"{said['code'] or ''} {said['name']}",
        " or ".join(map(str, expected)),
        is_own,
        lines=lines,
        **{key: said[key] for key in ("code", "after")},
    )
    latency = seen["latency"]
    at = (seen["longest_at"] - began) * 1e3
    report.row(
        f"{word}: the neighbour",
        f"{seen['wrong']} wrong of {latency['n']}, longest {latency['max']:.1f} ms at {at:+.0f} ms; "
        f"Xids {xids if log else 'unknown'}",
        "0 wrong, only Xids 13, 31, 43, 45",
        seen["wrong"] == 0 and not set(xids) - _OWN_XIDS,
        latency=latency,
        left=str(nvml.processes_mib()),
    )


def _open_log() -> KernelLog | None:
    try:
        return KernelLog()
    except OSError:
        return None
