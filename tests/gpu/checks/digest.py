"""How fast memory of the GPU can be read: what it would cost to verify shared weights at each hand-over."""

import statistics
from collections.abc import Callable
from typing import Final

from tests.gpu.figures import GIB
from tests.gpu.gpu import Gpu
from tests.gpu.report import Report

_GIB: Final = 16
_COPIED_GIB: Final = 4


def check(report: Report) -> None:
    """Sum 16 GiB, and copy 4."""
    gpu = Gpu()
    gpu.calibrate()
    size = _GIB * GIB
    address = gpu.cuda.allocate(size)
    gpu.cuda.fill(address, size, 1)
    ms = _time(gpu, lambda: gpu.queue_sum(address, size), report.times(7, 3))
    rate = size / ms / 1e6
    report.row(f"sum of {_GIB} GiB", f"{ms:.2f} ms, {rate:.0f} GB/s", "5-7 ms (3 TB/s)", 4.5 <= ms <= 7.5)
    is_right = gpu.sum(address, size) == 0x01010101 * (size // 4)
    report.row("the sum", "right" if is_right else "wrong", "right", is_right)
    copied = _COPIED_GIB * GIB
    arguments = (address + copied, address, copied, None)
    ms = _time(gpu, lambda: gpu.cuda.call("cuMemcpyDtoDAsync_v2", *arguments), report.times(5, 3))
    report.row(
        f"copy of {_COPIED_GIB} GiB on the GPU", f"{ms:.2f} ms, {2 * copied / ms / 1e6:.0f} GB/s read and written"
    )
    ms = _time(gpu, lambda: gpu.cuda.call("cuMemsetD8Async", address, 0, size, None), report.times(5, 3))
    report.row(f"zeroing {_GIB} GiB", f"{ms:.2f} ms, {size / ms / 1e6:.0f} GB/s")


def _time(gpu: Gpu, act: Callable[[], None], times: int) -> float:
    """The median of what it takes by the GPU's clock, in ms; the first one does not count."""
    first, last = gpu.cuda.event(), gpu.cuda.event()
    samples = []
    for _ in range(times + 1):
        gpu.cuda.call("cuEventRecord", first, None)
        act()
        gpu.cuda.call("cuEventRecord", last, None)
        gpu.cuda.synchronize()
        samples.append(gpu.cuda.elapsed_ms(first, last))
    return statistics.median(samples[1:])
