"""torch's memory fraction as a quota: what torch itself refuses, and what a tenant gets past it."""

from tests.gpu.cuda import Cuda
from tests.gpu.figures import GIB
from tests.gpu.report import Report

_FRACTION = 0.05
_BEYOND_GIB = 16


def check(report: Report) -> None:
    """Fill up to the fraction through torch, then ask the driver."""
    import torch

    torch.cuda.set_per_process_memory_fraction(_FRACTION)
    free, total = torch.cuda.mem_get_info()
    limit_gib = _FRACTION * total / GIB
    held = []
    refusal = ""
    while len(held) < 2 * limit_gib * 4 and not refusal:
        try:
            held.append(torch.empty(GIB // 4, dtype=torch.uint8, device="cuda"))
        except torch.cuda.OutOfMemoryError as e:
            refusal = str(e).splitlines()[0][:160]
    got_gib = len(held) / 4
    report.row(
        f"torch within {_FRACTION} of {total / GIB:.1f} GiB",
        f"{got_gib:.2f} GiB, then {'refused' if refusal else 'more'}",
        f"refused at {limit_gib:.1f} GiB",
        bool(refusal) and got_gib <= limit_gib,
        refusal=refusal,
    )
    after, told = torch.cuda.mem_get_info()
    report.row(
        "what mem_get_info tells the tenant", f"total {told / GIB:.1f}, free {after / GIB:.1f} GiB", "the whole GPU"
    )
    cuda = Cuda()
    cuda.retain()
    with report.step("cuMemAlloc beyond the fraction"):
        address = cuda.allocate(_BEYOND_GIB * GIB)
        cuda.fill(address, _BEYOND_GIB * GIB, 1)
        left, _ = torch.cuda.mem_get_info()
        report.row(
            f"cuMemAlloc of {_BEYOND_GIB} GiB beside it",
            f"succeeds, free {after / GIB:.1f} -> {left / GIB:.1f} GiB",
            "succeeds: no quota",
            ok=True,
        )
        cuda.call("cuMemFree_v2", address)
    report.data(free_before=free)
