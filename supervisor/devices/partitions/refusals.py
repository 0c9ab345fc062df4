"""Why a plan is not carried out: by an operator who wants it, or by the daemon itself. Pure."""

import hashlib
from collections.abc import Iterable, Sequence

from bedsit.ipc.errors import error
from bedsit.supervisor.devices.partitions.plan import GpuPlan


def make_token(plans: Iterable[GpuPlan]) -> str:
    """A word that is another one when anything that would be done is, or when something can be done that could not."""
    lines = [
        (plan.uuid, line.action, line.what, line.gpu_instance, line.device)
        for plan in plans
        for line in (*plan.changes, *plan.impossible)
    ]
    return hashlib.sha256(repr(lines).encode()).hexdigest()[:16]


def refuse(plans: Sequence[GpuPlan]) -> None:
    """Nothing is begun that cannot be brought to its end.

    Raises ``device.not_ready``, ``device.busy`` with who is in the way, ``config.invalid``.
    """
    for plan in plans:
        name = plan.uuid or plan.key
        if plan.trouble is not None:
            raise error("device.not_ready", f"{name}: {plan.trouble.what}", plan.trouble.mend)
        if plan.impossible:
            first = plan.impossible[0]
            words = f"{name}: {first.what} cannot be made: {first.why}"
            if any(line.action == "keep" for line in plan.lines):
                raise error("device.busy", words, "let who is in the way leave first, or declare something else")
            raise error("config.invalid", words, "change [devices.partitions], and restart the daemon")


def explain(plan: GpuPlan, full: GpuPlan) -> str:
    """Why nothing is made by itself: *plan* destroys nothing, *full* does what it takes.

    Empty where it can be made.
    """
    name = plan.uuid or plan.key
    if plan.trouble is not None:
        return f"{name}: not cut as declared: {plan.trouble.what}; {plan.trouble.mend}"
    if full.impossible:
        return f"{name}: not cut as declared: {full.impossible[0].what}: {full.impossible[0].why}"
    if plan.impossible:
        gone = ", ".join(line.what for line in full.changes if line.action == "destroy")
        return f"{name}: not cut as declared: {gone} would have to go; see: bedsit device partition plan {name}"
    return ""
