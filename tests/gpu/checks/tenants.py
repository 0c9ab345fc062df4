"""Bedsit itself on the card: two tenants take turns on it, from the seat to an answer; one dozes, one hangs."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tests.gpu.figures import GIB, MIB, summarise
from tests.gpu.report import Report

#: What both ask for, and what the box is told of devices.
WISH: Final = ("--device", "gpu:0.4", "--trusted", "--gpu-memory", "4GiB", "--memory", "6GiB")
DEVICES: Final[dict[str, Any]] = {"doze_s": 3.0, "hard_ms": 400.0}
_WIDTH: Final = 4096
_LAYERS: Final = 32
_SHOWN_S: Final = 25.0
_CALLS: Final = 200
_HANG_S: Final = 3.0
_TOML: Final = f"""
name = "net"
runner = "python"
entry = "model:build"
weights = ["net.safetensors"]
[[inputs]]
name = "x"
dtype = "float16"
shape = [1, {_WIDTH}]
[[inputs]]
name = "hang_s"
dtype = "float32"
shape = []
[[outputs]]
name = "y"
dtype = "float16"
shape = [1, {_WIDTH}]
[[outputs]]
name = "is_on_gpu"
dtype = "bool"
shape = []
"""
_MODEL: Final = """
import time, torch

class Net(torch.nn.Module):
    def __init__(self, layers, width):
        super().__init__()
        one = dict(bias=False, dtype=torch.half, device="meta")
        self.layers = torch.nn.ModuleList(torch.nn.Linear(width, width, **one) for _ in range(layers))

    def forward(self, x, hang_s):
        if hang_s > 0:
            if x.is_cuda:
                torch.cuda._sleep(int(float(hang_s) * 1.5e9))
                torch.cuda.synchronize()
            else:
                time.sleep(float(hang_s))
        for layer in self.layers:
            x = layer(x)
        return x, torch.tensor(self.layers[0].weight.is_cuda)

def build(bundle):
    weights = bundle.load_weights()
    net = Net(len(weights), weights["layers.0.weight"].shape[0])
    net.load_state_dict(weights, assign=True)
    return net
"""


def check(report: Report) -> None:
    """A box of its own, taken down at the end; what is left of it is killed."""
    from examples.box import Box

    with Box({"pool_size": 1, "devices": DEVICES}) as box:
        with report.step("a tenant on the card"):
            bundle = _write_bundle(box.folder / "net")
            for name in ("a", "b"):
                began = time.monotonic()
                box.read("tenant", "create", name, *WISH)
                box.read("model", "deploy", name, bundle)
                report.row(f"tenant {name}: created and deployed", f"{time.monotonic() - began:.2f} s", "", None)
            first = _ask(box, "a")
            _tell_calls(report, box)
            report.row("where it ran", "GPU" if first["is_on_gpu"] else "CPU", "GPU", bool(first["is_on_gpu"]))
        with report.step("memory, dozing and coming back"):
            _doze(report, box)
        with report.step("both at once"):
            _share(report, box)
        with report.step("one that keeps its turn"):
            _hang(report, box)
        with report.step("walls and events"):
            _tell_events(report, box)


def _ask(box: Any, name: str, hang_s: float = 0.0) -> dict[str, Any]:
    import numpy as np

    from bedsit import Client

    x = {"x": np.full((1, _WIDTH), 1e-3, np.float16), "hang_s": np.array(hang_s, np.float32)}
    with Client(name, run_dir=str(box.run_dir)) as client:
        got = client.infer("net", x, timeout_s=60)
        return {"y": float(got["y"].astype(np.float32).mean()), "is_on_gpu": bool(got["is_on_gpu"])}


def _loop(box: Any, name: str, count: int) -> list[float]:
    """How long each of so many calls took, in ms; each answer is checked."""
    import numpy as np

    from bedsit import Client

    x = {"x": np.full((1, _WIDTH), 1e-3, np.float16), "hang_s": np.array(0, np.float32)}
    took = []
    with Client(name, run_dir=str(box.run_dir)) as client:
        for _ in range(count):
            began = time.monotonic()
            got = client.infer("net", x, timeout_s=60)
            took.append((time.monotonic() - began) * 1e3)
            assert abs(float(got["y"].astype(np.float32).mean()) - 1e-3) < 1e-4, "a wrong answer"
    return took


def _tell_calls(report: Report, box: Any) -> None:
    took = summarise(_loop(box, "a", report.times(_CALLS, 20)))
    report.row("calls, alone", json.dumps(took), "", None, **took)


def _memory(box: Any, name: str) -> dict[str, Any]:
    return dict(box.tenant(name)["gpu_memory"] or {})


def _until(ask: Callable[[], bool]) -> bool:
    until = time.monotonic() + _SHOWN_S
    while not (answer := ask()) and time.monotonic() < until:
        time.sleep(0.2)
    return answer


def _doze(report: Report, box: Any) -> None:
    _ask(box, "a")
    there = _until(lambda: _memory(box, "a").get("used_bytes", 0) > _LAYERS * 2 * _WIDTH**2)
    shown = _memory(box, "a")
    report.row("memory of one that is awake", _tell_memory(shown), "weights and a context", there, shown=shown)
    left = _until(lambda: _memory(box, "a").get("used_bytes", GIB) < GIB)
    report.row("and of one that dozes", _tell_memory(_memory(box, "a")), "a context", left)
    began = time.monotonic()
    _ask(box, "a")
    report.row(
        "its next answer", f"{(time.monotonic() - began) * 1e3:.0f} ms", "< 500 ms", time.monotonic() - began < 0.5
    )
    said = [line for line in box.read("logs", "a").splitlines() if "bedsit: " in line]
    report.row("what its log says", " / ".join(said[-2:]), "", None, said=said)


def _tell_memory(shown: dict[str, Any]) -> str:
    return f"{shown.get('used_bytes', 0) / MIB:,.0f} MiB, {shown.get('held') or shown}"


def _share(report: Report, box: Any) -> None:
    took: dict[str, list[float]] = {}
    count = report.times(_CALLS, 20)
    threads = [
        threading.Thread(target=lambda name=name: took.update({name: _loop(box, name, count)})) for name in ("a", "b")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    both = {name: summarise(samples) for name, samples in took.items()}
    report.row("calls, both at once", json.dumps(both), "all answered", set(both) == {"a", "b"}, **both)
    rows = {row["tenant"]: row for row in box.admin.call("usage.list")["usage"]}
    figure = ", ".join(f"{name} {row['device_s']:.2f} s, {row['vram_gib_s']:.1f} GiB s" for name, row in rows.items())
    report.row("what they pay for", figure, "time and memory of both", all(rows[n]["device_s"] > 0 for n in "ab"))


def _hang(report: Report, box: Any) -> None:
    ended: list[str] = []

    def hang() -> None:
        try:
            _ask(box, "a", _HANG_S)
            ended.append("answered")
        except Exception as e:  # noqa: BLE001 - what its client is told is the figure
            ended.append(str(e))

    thread = threading.Thread(target=hang)
    thread.start()
    time.sleep(0.3)
    began = time.monotonic()
    _ask(box, "b")
    served_s = time.monotonic() - began
    thread.join()
    overruns = [event for event in box.items("events") if event["kind"] == "turn.overrun"]
    report.row(
        "one keeps the card; the other is served after",
        f"{served_s:.2f} s; {len(overruns)} turn.overrun; its client: {ended[0]}",
        "< 1 s, 1 event",
        served_s < 1.0 and len(overruns) == 1,
    )
    began = time.monotonic()
    _ask(box, "a")
    report.row("and it is back after", f"{time.monotonic() - began:.2f} s", "", None)


def _tell_events(report: Report, box: Any) -> None:
    events = box.items("events")
    kinds = Counter(event["kind"] for event in events)
    told = [
        f"{event['kind']}: {event['text']}"
        for event in events
        if event["kind"].startswith(("slot.call", "slot.refused", "slot.died", "device.", "memory.", "tenant.degr"))
    ]
    report.row("events", json.dumps(dict(kinds)), "", None, told=told)
    report.row("system calls that were refused", " / ".join(t for t in told if "slot.call" in t) or "none", "", None)


def _write_bundle(folder: Path) -> Path:
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    weight = torch.full((_WIDTH, _WIDTH), 2.0**-12, dtype=torch.half)
    save_file({f"layers.{n}.weight": weight.clone() for n in range(_LAYERS)}, str(folder / "net.safetensors"))
    (folder / "bedsit.toml").write_text(_TOML)
    (folder / "model.py").write_text(_MODEL)
    return folder
