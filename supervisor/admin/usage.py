"""usage.list: what tenants, models or devices used."""

from datetime import UTC, datetime, timedelta
from typing import Any

from bedsit.ipc.errors import error
from bedsit.supervisor.admin import schema
from bedsit.supervisor.admin.call import Call
from bedsit.supervisor.books import hour_of
from bedsit.supervisor.desk import Desk


async def list_all(desk: Desk, request: schema.UsageList, _call: Call) -> dict[str, Any]:
    """Added up from the beginning of an hour until now. Raises ``request.invalid`` for devices of a tenant."""
    if request.by == "device" and request.tenant is not None:
        raise error("request.invalid", "a device's time is not one tenant's", "leave the tenant out, or ask by model")
    await desk.books.bring_up_to_date()
    since = hour_of(datetime.now(UTC) - timedelta(hours=request.hours))
    return {"usage": desk.books.ledger.read(request.by, since, request.tenant), "since": f"{since}:00:00Z"}
