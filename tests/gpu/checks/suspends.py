"""A whole process off the GPU and back: how long, where its memory is meanwhile, and whether it is the same then."""

import socket
import time
from typing import Any, Final

from tests.gpu.figures import GIB
from tests.gpu.gpu import read_memory_kib
from tests.gpu.nvml import Nvml, await_true
from tests.gpu.peer import Peer, serve
from tests.gpu.report import Report
from tests.gpu.suspender import start_suspender

_SIZES_GIB: Final = (0, 1, 8)
#: Tried when the ones before say that it takes no longer than this, out and in.
_BIG_GIB: Final = (32, 16)
_BIG_S: Final = 24.0
_STEP_WAIT_S: Final = 40.0


def tenant(sock: socket.socket) -> None:
    """A peer as a tenant would be: torch, a model, its CUDA graph, and a GiB of weights."""
    import torch

    held: dict[str, Any] = {}

    def start() -> None:
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(1024, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 8)).cuda().half()
        held["weights"] = torch.full((GIB,), 7, dtype=torch.uint8, device="cuda")
        held["given"] = torch.ones(8, 1024, device="cuda", dtype=torch.half)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode(), torch.cuda.stream(side):
            for _ in range(3):
                net(held["given"])
        torch.cuda.current_stream().wait_stream(side)
        held["graph"], held["net"] = torch.cuda.CUDAGraph(), net
        with torch.inference_mode(), torch.cuda.graph(held["graph"]):
            held["result"] = net(held["given"])

    def infer() -> dict[str, Any]:
        began = time.monotonic()
        held["graph"].replay()
        torch.cuda.synchronize()
        result = held["result"].float().sum().item()
        with torch.inference_mode():
            eager = held["net"](held["given"]).float().sum().item()
        return {"sum": [result, eager, int(held["weights"].sum().item())], "ms": (time.monotonic() - began) * 1e3}

    serve(sock, {"open": start, "sum": infer, "replay": infer})


def check(report: Report) -> None:
    """Growing processes, one of them twice, then one with torch."""
    seconds_per_gib = 0.0
    with Nvml() as nvml:
        for gib in _SIZES_GIB:
            with report.step(f"{gib} GiB"), Peer("holder:hold") as target:
                target.ask("open")
                target.ask("allocate", gib=gib, byte=0x3C)
                target.ask("graph")
                took = _cycle(report, nvml, target, f"{gib} GiB and a graph", gib)
                if gib == 1:
                    _cycle(report, nvml, target, "the same again", gib)
                seconds_per_gib = took / gib if gib else 0.0
        with report.step("torch with a model, its graph, 1 GiB"), Peer("checks.suspends:tenant", wait_s=40) as target:
            target.ask("open")
            _cycle(report, nvml, target, "torch, a model, its graph, 1 GiB", 1)
        big = [gib for gib in _BIG_GIB if seconds_per_gib and seconds_per_gib * gib <= _BIG_S * min(1.0, report.scale)]
        for gib in big[:1]:
            with report.step(f"{gib} GiB"), Peer("holder:hold") as target:
                target.ask("open")
                target.ask("allocate", gib=gib, byte=0x3C)
                target.ask("graph")
                _cycle(report, nvml, target, f"{gib} GiB and a graph", gib)


def _cycle(report: Report, nvml: Nvml, target: Peer, what: str, gib: float) -> float:
    """Lock, out, in, unlock; gives the seconds of out and in. Raises what stopped it, and kills it then."""
    expected = target.ask("sum")["sum"]
    target.ask("replay")
    before = {"gpu": nvml.used_mib(), "own": nvml.processes_mib().get(target.pid), "kib": read_memory_kib(target.pid)}
    suspender = start_suspender(wait_s=_STEP_WAIT_S)
    times: dict[str, float] = {}
    with suspender:
        for word in ("lock", "checkpoint"):
            times[word] = _do(suspender, word, target)
        gone = await_true(lambda: target.pid not in nvml.processes_mib(), 2)
        away = {"gpu": nvml.used_mib(), "kib": read_memory_kib(target.pid), "pid_gone_s": gone}
        state = suspender.ask("state", pid=target.pid)["state"]
        for word in ("restore", "unlock"):
            times[word] = _do(suspender, word, target)
    first = target.ask("replay")["ms"]
    is_same = target.ask("sum")["sum"] == expected
    out_s, in_s = times["checkpoint"] / 1e3, times["restore"] / 1e3
    size = gib * GIB / 1e9
    rates = f" ({size / out_s:.1f} and {size / in_s:.1f} GB/s)" if gib else ""
    is_expected = 2 <= size / out_s <= 6 and 2.5 <= size / in_s <= 8 if gib >= 8 else None
    report.row(
        f"{what}: out and in",
        f"lock {times['lock']:.0f}, out {times['checkpoint']:.0f}, in {times['restore']:.0f}, "
        f"unlock {times['unlock']:.0f} ms{rates}",
        "2-6 and 2.5-8 GB/s" if gib >= 8 else "",
        is_expected,
        before=before,
        away=away,
        times=times,
    )
    grown = (away["kib"]["VmRSS"] - before["kib"]["VmRSS"]) / 1024  # type: ignore[index]
    freed = before["gpu"] - away["gpu"]  # type: ignore[operator]
    report.row(
        f"{what}: meanwhile",
        f"{state}, GPU {freed:.0f} MiB less, pid {'listed' if gone is None else 'gone'}, RSS {grown:+.0f} MiB",
        "checkpointed, all of it gone",
        state == "checkpointed" and freed >= gib * 1024,
    )
    report.row(
        f"{what}: afterwards",
        f"{'the same' if is_same else 'differs'}, graph replays in {first:.1f} ms",
        "the same",
        is_same,
    )
    return out_s + in_s


def _do(suspender: Peer, word: str, target: Peer) -> float:
    arguments = {"timeout_ms": 5000} if word == "lock" else {}
    try:
        said = suspender.ask(word, pid=target.pid, **arguments)
    except TimeoutError:
        # Neither of them can be trusted with anything more.
        suspender.kill()
        target.kill()
        raise
    if said["code"]:
        state = suspender.ask("state", pid=target.pid)["state"]
        target.kill()
        raise RuntimeError(f"{word}: {said['code']} {said['name']}, then {state}")
    return float(said["ms"])
