"""What launching costs: a tiny model (64-64-8) eagerly, as a CUDA graph, and on the CPU."""

import time
from collections.abc import Callable
from typing import Any

from tests.gpu.figures import show, summarise
from tests.gpu.report import Report


def check(report: Report) -> None:
    """One request at a time, from the call until its result is there."""
    import torch

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8))
    times = report.times(2000, 200)
    with torch.inference_mode():
        torch.set_num_threads(1)
        example = torch.ones(1, 64)
        expected = net(example)
        report.row("on the CPU, one thread", _time(lambda: net(example), times))
        net = net.cuda()
        given = example.cuda()
        wait = torch.cuda.synchronize
        report.row("eager, with its wait", _time(lambda: (net(given), wait()), times))
        report.row("eager, the launches alone", _time(lambda: net(given), times))
        wait()
        report.row("a wait for nothing", _time(wait, times))
        for rows in (1, 32):
            with report.step(f"graph of {rows}"):
                _time_graph(report, net, expected, rows, times)


def _time_graph(report: Report, net: Any, expected: Any, rows: int, times: int) -> None:
    """A graph of the model for that many rows: alone, then with its input from and its output to pinned memory."""
    import torch

    wait = torch.cuda.synchronize
    given = torch.ones(rows, 64, device="cuda")
    begin, end = torch.ones(rows, 64).pin_memory(), torch.zeros(rows, 8).pin_memory()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            net(given)
    torch.cuda.current_stream().wait_stream(side)
    began = time.monotonic()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = net(given)
    captured_ms = (time.monotonic() - began) * 1e3
    report.row(
        f"graph of {rows}, with its wait", _time(lambda: (graph.replay(), wait()), times), captured_ms=captured_ms
    )

    def serve() -> None:
        given.copy_(begin, non_blocking=True)
        graph.replay()
        end.copy_(result, non_blocking=True)
        wait()

    figure = _time(serve, times)
    is_same = torch.allclose(end[:1], expected, atol=1e-3)
    report.row(f"graph of {rows}, pinned in and out", figure, "the CPU's result", is_same)


def _time(act: Callable[[], object], times: int) -> str:
    for _ in range(50):
        act()
    samples = []
    for _ in range(times):
        began = time.perf_counter()
        act()
        samples.append((time.perf_counter() - began) * 1e6)
    return show(summarise(samples), "us")
