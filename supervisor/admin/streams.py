"""What comes item by item: events, logs. With *follow* until the caller leaves."""

from typing import Any, Final

from bedsit.supervisor.admin import schema
from bedsit.supervisor.admin.call import Call
from bedsit.supervisor.desk import Desk
from bedsit.supervisor.tenantlogs import LogFollower, last_lines

_POLL_S: Final = 0.25


async def events(desk: Desk, request: schema.EventsAsked, call: Call) -> dict[str, Any]:
    """The newest events, oldest first; then what happens. The feed starts first, so that nothing falls between."""
    with desk.events.feed() as feed:
        newest = 0
        for happening in desk.events.last(request.limit, request.tenant):
            newest = happening.id
            await call.item(happening.to_wire())
        while request.follow and (happening_or_none := await call.next_of(feed)) is not None:
            happening = happening_or_none
            is_new = happening.id > newest or happening.id == 0
            if is_new and request.tenant in (None, happening.tenant):
                await call.item(happening.to_wire())
    return {}


async def logs(desk: Desk, request: schema.LogsAsked, call: Call) -> dict[str, Any]:
    """The newest lines of a tenant's slots, oldest first; then what it prints."""
    folder = desk.folders.logs / desk.registry.tenant(request.tenant).name
    follower = LogFollower(folder)
    for line in last_lines(folder, request.lines):
        await call.item(line.to_wire())
    while request.follow and not await call.left_within(_POLL_S):
        for line in follower.poll():
            await call.item(line.to_wire())
    return {}
