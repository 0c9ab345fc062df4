"""A model that leaves the GPU while it is idle, by the worker's own code: what is free then, and how long it takes."""

import importlib.util
import mmap
import os
import socket
import time
from pathlib import Path
from typing import Any, Final

from tests.gpu.figures import GIB, MIB
from tests.gpu.nvml import Nvml
from tests.gpu.peer import Peer, serve
from tests.gpu.report import Report

_RESIDENCE: Final = Path(__file__).parents[3] / "sandbox/worker/residence.py"
_SIZES_GIB: Final = (1, 8)
_WIDTH: Final = 4096
_LAYER_BYTES: Final = 2 * _WIDTH * _WIDTH
_WAIT_S: Final = 60.0
_TIMES: Final = 3


def tenant(sock: socket.socket) -> None:
    """A peer as a worker would be: a module whose weights are mapped, on a device that it leaves and comes back to."""
    import torch

    # As a file: neither its package nor what that needs has to be installed for this.
    spec = importlib.util.spec_from_file_location("residence", _RESIDENCE)
    assert spec is not None
    assert spec.loader is not None
    residence_module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(residence_module)
    held: dict[str, Any] = {}

    def start(gib: float, device: str = "cuda") -> dict[str, Any]:
        torch.zeros(1, device=device)  # the context
        layers = max(1, int(gib * GIB) // _LAYER_BYTES)
        memory = _make_weights(layers)
        weights = torch.frombuffer(memory, dtype=torch.half).view(layers, _WIDTH, _WIDTH)
        net = torch.nn.Sequential(*(torch.nn.Linear(_WIDTH, _WIDTH, bias=False, device="meta") for _ in range(layers)))
        for layer, weight in zip(net, weights, strict=True):
            layer.weight = torch.nn.Parameter(weight, requires_grad=False)
        storage = weights.untyped_storage().data_ptr()
        held["net"] = residence_module.Residence(
            net, torch.device(device), lambda tensor: tensor.untyped_storage().data_ptr() == storage
        )
        held["call"] = net
        began = time.monotonic()
        size = held["net"].enter()
        _finish(device)
        return {"size": size, "ms": (time.monotonic() - began) * 1e3, "device": device}

    def infer(device: str = "cuda") -> dict[str, Any]:
        """Comes back first where it is away."""
        began = time.monotonic()
        with torch.inference_mode():
            (given,) = held["net"].take([torch.full((1, _WIDTH), 1e-3, dtype=torch.half)])
            _finish(device)
            came = time.monotonic()
            result = held["call"](given).float().sum().item()
        return {"sum": result, "came_ms": (came - began) * 1e3, "ran_ms": (time.monotonic() - came) * 1e3}

    def leave() -> dict[str, Any]:
        began = time.monotonic()
        residence_module.doze([held["net"]], 1.0)
        return {"ms": (time.monotonic() - began) * 1e3, "away": held["net"].is_away}

    def _finish(device: str) -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    serve(sock, {"open": start, "infer": infer, "leave": leave})


def check(report: Report) -> None:
    """Two sizes: leaves and comes back some times, and what NVML says of the process meanwhile."""
    with Nvml() as nvml:
        for gib in _SIZES_GIB:
            with report.step(f"{gib} GiB"), Peer("checks.idle:tenant", wait_s=_WAIT_S) as target:
                first = target.ask("open", gib=gib)
                expected = target.ask("infer")["sum"]
                there = nvml.processes_mib().get(target.pid) or 0.0
                rounds = []
                for _ in range(_TIMES):
                    left = target.ask("leave")
                    away = nvml.processes_mib().get(target.pid) or 0.0
                    rounds.append({"left_ms": left["ms"], "away_mib": away, **target.ask("infer")})
                best = min(rounds, key=lambda each: each["came_ms"])
                size = first["size"]
                report.row(
                    f"{gib} GiB: leaves and comes back",
                    f"first {first['ms']:.0f}, leaves {best['left_ms']:.1f}, back {best['came_ms']:.0f} ms "
                    f"({size / best['came_ms'] / 1e6:.1f} GB/s), runs in {best['ran_ms']:.1f} ms",
                    "back at 5+ GB/s",
                    size / best["came_ms"] / 1e6 >= 5,
                    first=first,
                    rounds=rounds,
                )
                freed = there - max(each["away_mib"] for each in rounds)
                is_same = all(each["sum"] == expected for each in rounds)
                report.row(
                    f"{gib} GiB: meanwhile, and afterwards",
                    f"{freed:.0f} of {there:.0f} MiB free; the answers {'are the same' if is_same else 'differ'}",
                    "all but the context, the same",
                    freed * MIB >= 0.95 * size and is_same,
                )


def _make_weights(layers: int) -> mmap.mmap:
    """A file of layers as a bundle has them, mapped as a worker maps it, with every page there."""
    file = os.memfd_create("bedsit-gpu-check", os.MFD_CLOEXEC)
    part = bytes((0x00, 0x0C)) * (_LAYER_BYTES // 2)  # 2**-12, as half
    for _ in range(layers):
        os.write(file, part)
    memory = mmap.mmap(file, layers * _LAYER_BYTES, access=mmap.ACCESS_COPY)
    os.close(file)
    return memory
