"""What NVML says of the first GPU, through NVIDIA's own binding. Read-only."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

from tests.gpu.figures import MIB

#: Between two looks at what must change: a look costs less than this.
_PAUSE_S: Final = 0.002


class Nvml:
    """NVML, initialised for as long as the with block lasts; *lib* is pynvml, *gpu* the handle."""

    def __init__(self) -> None:
        import pynvml

        self.lib: Any = pynvml
        self.gpu: Any = None

    def __enter__(self) -> Self:
        self.lib.nvmlInit()
        self.gpu = self.lib.nvmlDeviceGetHandleByIndex(0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.lib.nvmlShutdown()

    def used_mib(self) -> float:
        """Memory of the whole GPU that is in use, the driver's own included."""
        return float(self.lib.nvmlDeviceGetMemoryInfo(self.gpu).used) / MIB

    def processes_mib(self) -> dict[int, float | None]:
        """Memory by process, None where NVML does not tell it."""
        found = self.lib.nvmlDeviceGetComputeRunningProcesses(self.gpu)
        return {each.pid: None if each.usedGpuMemory is None else each.usedGpuMemory / MIB for each in found}

    def busy_percent(self) -> int:
        """Part of its last sample period (up to a second) in which some kernel ran."""
        return int(self.lib.nvmlDeviceGetUtilizationRates(self.gpu).gpu)

    def settle(self, within_s: float = 4.0) -> float:
        """Wait until no process computes and the memory in use stands still; gives the latter."""
        deadline = time.monotonic() + within_s
        last = -1.0
        while time.monotonic() < deadline and (self.processes_mib() or last != self.used_mib()):
            last = self.used_mib()
            time.sleep(0.1)
        return self.used_mib()


def await_true(condition: Callable[[], bool], within_s: float) -> float | None:
    """How many seconds it took to become true; None when it did not."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > within_s:
            return None
        time.sleep(_PAUSE_S)
    return time.monotonic() - began
