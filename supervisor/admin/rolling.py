"""A new set of models for a tenant, or fresh slots for the one that it has: loaded first, then switched over to."""

from collections.abc import Callable

from bedsit.supervisor import stimuli as on
from bedsit.supervisor.admin.call import Call
from bedsit.supervisor.desk import Desk
from bedsit.supervisor.operations import Manifests
from bedsit.supervisor.policy import ModelSet
from bedsit.supervisor.registry import TenantRow
from bedsit.supervisor.usher import FIRST_LOOK_S


async def roll(
    desk: Desk,
    row: TenantRow,
    models: ModelSet,
    commit: Callable[[Manifests], None],
    call: Call,
    timeout_s: float | None,
) -> None:
    """Answers once the new slot serves. Raises what keeps it from that, and nothing has changed then.

    *commit* writes it down. *timeout_s* None: as long as the configuration says.
    """
    await desk.wait_until(lambda: _is_seen(desk, row.name), FIRST_LOOK_S)
    operation = desk.operations.open(commit, call.progress)
    try:
        within_s = timeout_s or desk.config.load_timeout_s
        desk.feed(on.RollAsked(operation.id, row.name, models, within_s))
        refused = await operation.answer
        if refused is not None:
            raise refused
    finally:
        desk.operations.close(operation)


def _is_seen(desk: Desk, name: str) -> bool:
    """Whether the device of its seat was looked at since this daemon came up."""
    tenant = desk.house.tenants.get(name)
    return tenant is None or tenant.hold != "unseen"
