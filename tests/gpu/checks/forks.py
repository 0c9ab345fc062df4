"""CUDA in children of a parent that imported torch and never initialised CUDA: how a zygote's slots would begin."""

import json
import os
import select
import signal
import statistics
import time
from collections.abc import Callable
from typing import Any, Final

from tests.gpu.cuda import Cuda
from tests.gpu.nvml import Nvml
from tests.gpu.report import Report, explain

_WAIT_S: Final = 15.0


def check(report: Report) -> None:
    """Forks one after another, four at once, after the parent's NVML, and after the parent's cuInit."""
    began = time.monotonic()
    import torch

    report.row("the parent's import of torch", f"{(time.monotonic() - began) * 1e3:.0f} ms")
    with report.step("fork of a parent with torch, never initialised"):
        runs = [_collect(_fork(_compute)) for _ in range(report.times(3))]
        report.row(
            "fork of a parent with torch: to the first result",
            _tell(runs),
            "CUDA works",
            _is_fine(runs),
            runs=runs,
            initialised=torch.cuda.is_initialized(),
        )
    with report.step("4 forks at once"):
        runs = [_collect(child) for child in [_fork(_compute) for _ in range(4)]]
        report.row("4 forks at once", _tell(runs), "CUDA works", _is_fine(runs), runs=runs)
    with report.step("fork of a parent that asked NVML"):
        with Nvml() as nvml:
            nvml.used_mib()
            runs = [_collect(_fork(_compute))]
        runs.append(_collect(_fork(_compute)))
        report.row("fork of a parent with NVML open, then shut", _tell(runs), "CUDA works", _is_fine(runs), runs=runs)
    with report.step("fork of a parent that called cuInit"):
        Cuda().init()
        runs = [_collect(_fork(_retain)), _collect(_fork(_compute))]
        said = [run.get("error", "works")[:60] for run in runs]
        report.row(
            "after the parent's cuInit: driver, torch", " | ".join(said), "refused", "error" in runs[0], runs=runs
        )


def _compute() -> dict[str, Any]:
    """What a worker does first."""
    import torch

    began = time.monotonic()
    torch.zeros(1, device="cuda")
    torch.cuda.synchronize()
    opened = time.monotonic()
    square = torch.ones(1024, 1024, device="cuda", dtype=torch.bfloat16)
    product = (square @ square)[0, 0].item()
    return {"context": (opened - began) * 1e3, "gemm": (time.monotonic() - opened) * 1e3, "product": product}


def _retain() -> dict[str, Any]:
    Cuda().retain()
    return {"context": 0.0}


def _fork(act: Callable[[], dict[str, Any]]) -> tuple[int, int, float]:
    """A child that does it; its pid, where its answer comes from, and when it began."""
    ours, theirs = os.pipe()
    began = time.monotonic()
    # JUSTIFICATION: the fork is what is measured.
    # SAFETY: the child leaves by _exit, and whatever threads torch's import left behind are not asked for anything.
    if pid := os.fork():
        os.close(theirs)
        return pid, ours, began
    try:
        answer = act() | {"all": (time.monotonic() - began) * 1e3}
    except BaseException as e:  # noqa: BLE001 - no exception may climb into the parent's code
        answer = {"error": explain(e)}
    os.write(theirs, json.dumps(answer).encode())
    os._exit(0)


def _collect(child: tuple[int, int, float]) -> dict[str, Any]:
    pid, ours, _ = child
    is_there = bool(select.select([ours], [], [], _WAIT_S)[0])
    said = os.read(ours, 1 << 16) if is_there else b""
    os.close(ours)
    if not said:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if said:
        answer: dict[str, Any] = json.loads(said)
        return answer
    return {"error": f"status {status}" if is_there else f"no answer within {_WAIT_S:g} s"}


def _is_fine(runs: list[dict[str, Any]]) -> bool:
    return all(run.get("product") == 1024.0 for run in runs)


def _tell(runs: list[dict[str, Any]]) -> str:
    if errors := [run["error"] for run in runs if "error" in run]:
        return f"{len(errors)} of {len(runs)} failed: {errors[0]}"
    context, gemm, whole = (statistics.median(run[key] for run in runs) for key in ("context", "gemm", "all"))
    return f"context {context:.0f}, GEMM {gemm:.0f}, all {whole:.0f} ms (n {len(runs)})"
