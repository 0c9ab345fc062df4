"""How well NVML tells which process uses the GPU, for finding work outside of leases."""

import time
from contextlib import ExitStack
from typing import Final

from tests.gpu.nvml import Nvml
from tests.gpu.peer import Peer
from tests.gpu.report import Report

#: Of each period of 100 ms, by process.
_BUSY_MS: Final = (30.0, 10.0)
_PERIOD_MS: Final = 100.0


def check(report: Report) -> None:
    """Processes that compute 30 % and 10 % of the time, beside what NVML says of them."""
    seconds = max(3.0, 5.0 * report.scale)
    with Nvml() as nvml, ExitStack() as stack:
        peers = [stack.enter_context(Peer("worker:compute")) for _ in _BUSY_MS]
        rounds = peers[0].ask("open")["rounds_per_ms"]
        peers[1].ask("open", rounds_per_ms=rounds)
        began = time.monotonic()
        for peer, busy_ms in zip(peers, _BUSY_MS, strict=True):
            peer.tell("duty", busy_ms=busy_ms, period_ms=_PERIOD_MS, seconds=seconds)
        told: dict[int, list[int]] = {peer.pid: [] for peer in peers}
        whole: list[int] = []
        first_at: float | None = None
        failures: set[str] = set()
        last = 0
        while time.monotonic() < began + seconds:
            time.sleep(0.1)
            whole.append(nvml.busy_percent())
            try:
                samples = nvml.lib.nvmlDeviceGetProcessUtilization(nvml.gpu, last)
            except nvml.lib.NVMLError as e:
                failures.add(str(e))
                continue
            for sample in samples:
                if sample.timeStamp > last and sample.pid in told:
                    first_at = first_at or time.monotonic() - began
                    told[sample.pid].append(sample.smUtil)
            last = max([last, *(sample.timeStamp for sample in samples)])
        parts = [peer.hear(seconds + 10)["part"] * 100 for peer in peers]
        report.data(failures=sorted(failures))
        for peer, part in zip(peers, parts, strict=True):
            seen = told[peer.pid]
            mean = sum(seen) / len(seen) if seen else 0.0
            figure = f"NVML {mean:.0f} % (n {len(seen)})" if seen else f"no sample; {'; '.join(failures) or 'no error'}"
            report.row(
                f"a process busy {part:.0f} %", figure, "within 10 points", abs(mean - part) <= 10, samples=seen[:100]
            )
        mean = sum(whole) / max(len(whole), 1)
        report.row(f"the whole GPU, busy {sum(parts):.0f} %", f"NVML {mean:.0f} %", "", None, samples=whole[:200])
        lag = f"{first_at:.2f} s" if first_at is not None else "never"
        report.row("first sample of a process after", lag, "about 1 s", first_at is not None and first_at < 2.5)
