"""device.partition.*: what the declared partitions come to, and doing it."""

import time
from collections.abc import Iterable, Iterator
from typing import Any

from bedsit.supervisor.admin import schema
from bedsit.supervisor.admin.call import Call
from bedsit.supervisor.desk import Desk
from bedsit.supervisor.devices.partitions.plan import GpuPlan, Line
from bedsit.supervisor.devices.partitions.refusals import make_token


async def look(desk: Desk, request: schema.PartitionPlan, _call: Call) -> dict[str, Any]:
    """A row for each instance that is there, or declared; *token* stands for what `apply` would do of it.

    Raises ``device.not_found``, ``request.invalid``. Waits for the driver.
    """
    plans = await desk.partitions.look(request.gpu)
    return {"rows": list(_rows(plans)), "changes": sum(len(plan.changes) for plan in plans), "token": make_token(plans)}


async def apply(desk: Desk, request: schema.PartitionApply, call: Call) -> dict[str, Any]:
    """A row for each change, with what became of it. What it raises was said before anything was done.

    Raises ``device.moved``, ``device.busy``, ``device.not_ready``, ``config.invalid``, ``device.not_found``.
    """
    began = time.monotonic()
    phase = ""

    def tell(name: str | None) -> None:
        nonlocal began, phase
        if phase:
            call.progress(phase, (time.monotonic() - began) * 1000)
        began, phase = time.monotonic(), name or ""
        if phase:
            call.progress(phase)

    _, outcomes = await desk.partitions.apply(request.gpu, request.token, tell)
    tell(None)
    rows = []
    for each in outcomes:
        trouble = each.trouble
        said = {"why": trouble.what, "mend": trouble.mend} if trouble else {"why": None, "mend": None}
        rows.append({**_row(each.uuid, each.line), "state": each.state, **said})
    return {"rows": rows, "failed": sum(each.state != "done" for each in outcomes)}


def _rows(plans: Iterable[GpuPlan]) -> Iterator[dict[str, Any]]:
    for plan in plans:
        name = plan.uuid or plan.key
        if plan.trouble is not None:
            row = _row(name, Line("impossible", "", plan.trouble.what))
            yield {**row, "profile": None, "mend": plan.trouble.mend}
        changes = plan.changes
        for line in (*changes, *(line for line in plan.lines if line not in changes)):
            yield _row(name, line)


def _row(gpu: str, line: Line) -> dict[str, Any]:
    return {
        "gpu": gpu,
        "action": line.action,
        "profile": line.profile,
        "placement": {"start": line.placement.start, "size": line.placement.size} if line.placement else None,
        "device": line.device,
        "occupants": list(line.occupants),
        "why": line.why,
        "mend": None,
    }
