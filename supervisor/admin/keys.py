"""key.*: create, list, revoke."""

from typing import Any

from bedsit.supervisor.admin import schema
from bedsit.supervisor.admin.call import Call
from bedsit.supervisor.desk import Desk, now_text
from bedsit.supervisor.keys import make_key


async def create(desk: Desk, request: schema.KeyCreate, _call: Call) -> dict[str, Any]:
    """A further key; its secret is in this answer and nowhere else."""
    row = desk.registry.tenant(request.tenant)
    key = make_key()
    desk.registry.add_key(row.number, key, request.label, now_text())
    desk.events.add("key.created", f"key {key.id} {request.label}".strip(), row.name)
    desk.publish()
    await desk.settle()
    return {"id": key.id, "secret": key.secret}


async def list_all(desk: Desk, request: schema.KeyList, _call: Call) -> list[dict[str, Any]]:
    """All keys of a tenant, oldest first."""
    row = desk.registry.tenant(request.tenant)
    return [
        {"id": key.id, "label": key.label, "created_at": key.created_at, "revoked_at": key.revoked_at}
        for key in desk.registry.keys(row.number)
    ]


async def revoke(desk: Desk, request: schema.KeyRevoke, _call: Call) -> dict[str, Any]:
    """The key opens nothing from now on."""
    row = desk.registry.tenant(request.tenant)
    desk.registry.revoke_key(row.number, request.id, now_text())
    desk.events.add("key.revoked", f"key {request.id}", row.name)
    desk.publish()
    await desk.settle()
    return {}
