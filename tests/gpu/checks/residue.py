"""Whether a new process ever sees what another one left, in fresh memory and in the multiprocessors' shared memory."""

from contextlib import ExitStack
from typing import Any, Final

from tests.gpu.nvml import Nvml
from tests.gpu.peer import Peer
from tests.gpu.report import Report

_BYTE: Final = 0xA5
_PATTERN: Final = 0xA5A5A5A5
_FILLED_GIB: Final = 8
#: Enough that the scan meets what was filled, wherever that was.
_SCANNED_GIB: Final = 48
_SHARED_PATTERN: Final = 0x5EC2E75A


def check(report: Report) -> None:
    """After an exit, after a kill, after a free beside a living owner, within one process; then shared memory."""
    gib = _SCANNED_GIB if report.scale >= 0.5 else 16
    with Nvml() as nvml:
        for how in ("exit", "kill -9"):
            with report.step(f"after {how}"):
                nvml.settle()
                with _filled() as owner:
                    if how == "exit":
                        owner.leave()
                    else:
                        owner.kill()
                        owner.process.wait(10)
                nvml.settle()
                _scan_anew(report, f"{gib} GiB of a new process, after {how}", gib)
    with report.step("beside the living owner that freed it"), _filled() as owner:
        owner.ask("free")
        _scan_anew(report, f"{gib} GiB of a new process, its owner lives and freed it", gib)
    with report.step("the same process again"), _filled() as owner:
        owner.ask("free")
        owner.ask("allocate", gib=_FILLED_GIB)
        _tell(report, "the same process, freed and allocated again", owner.ask("scan", pattern=_PATTERN), "")
    with report.step("shared memory"), ExitStack() as stack:
        writer, reader = (stack.enter_context(Peer("holder:hold")) for _ in range(2))
        for peer in (writer, reader):
            peer.ask("open")
        writer.tell("shared_fill", pattern=_SHARED_PATTERN, times=3000)
        seen = reader.ask("shared_scan", pattern=_SHARED_PATTERN, times=300)
        writer.hear()
        again = reader.ask("shared_scan", pattern=_SHARED_PATTERN, times=20)
        seen = {key: seen[key] + again[key] for key in ("some", "same")}
        _tell(report, "shared memory, beside and after a writer", seen, "none of the pattern", is_pattern_all=True)


def _filled() -> Peer:
    owner = Peer("holder:hold")
    owner.ask("open")
    owner.ask("allocate", gib=_FILLED_GIB, byte=_BYTE)
    return owner


def _scan_anew(report: Report, what: str, gib: float) -> None:
    with Peer("holder:hold") as finder:
        finder.ask("open")
        taken = finder.ask("allocate", gib=gib, block_gib=2.0)
        _tell(report, what, finder.ask("scan", pattern=_PATTERN), "all zero", taken_ms=taken["taken_ms"])


def _tell(
    report: Report, what: str, seen: dict[str, Any], expect: str, *, is_pattern_all: bool = False, **data: float
) -> None:
    took = f"; taken in {data['taken_ms']:.0f} ms" if "taken_ms" in data else ""
    count = seen["same"] if is_pattern_all else seen["some"]
    figure = f"{seen['some']} words not zero, {seen['same']} of the pattern{took}"
    report.row(what, figure, expect, count == 0 if expect else None, **seen, **data)
