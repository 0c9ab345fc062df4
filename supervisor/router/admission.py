"""Admission: what is let in to wait, and what is refused at once, with how long to hold off.

Checked in this order: state, deadline, room and whether the deadline can be met by what is known of the work ahead; the
rate at last, so that a request that is refused for another reason does not count towards it.
"""

from copy import copy
from typing import Final

from bedsit.ipc.errors import BedsitError, error
from bedsit.ipc.snapshot import TenantView
from bedsit.supervisor.router.lines import Line
from bedsit.supervisor.router.tenants import Tenant

_SECOND_NS: Final = 1_000_000_000
_FULL_RETRY_S: Final = 0.05  # where nobody knows how long the queue will take

#: Refusals that say that there is too much: whoever causes them is read less often.
OVERLOAD: Final = frozenset({"queue.full", "rate.limited"})


def find_line(tenant: Tenant, number: int, version: int, *, pinned: bool) -> Line:
    """The line of the version that a request means, where it is not the one that its tenant's default is.

    Raises ``model.not_found``, or ``model.moved`` when the default is another one by now than the client believes.
    """
    line = tenant.lines.get((number, version))
    if line is not None and (line.is_default or pinned):
        return line
    model = tenant.model_numbers.get(number)
    if model is None:
        raise error("model.not_found", f"tenant {tenant.view.name} has no such model any more")
    if pinned:
        raise error("model.not_found", f"model {model.name} has no version {version}")
    raise error("model.moved", f"model {model.name} answers with version {model.default} by now", "ask for it again")


def check(tenant: Tenant, line: Line, deadline_ns: int, size: int, now_ns: int) -> None:
    """Whether a request of *size* bytes may wait in *line*. Raises what refuses it; counts it where it may."""
    if not tenant.is_open:
        raise shut(tenant.view)
    if line.is_quarantined:
        raise quarantined(line)
    if 0 < deadline_ns <= now_ns:
        raise expired()
    if not line.slots:
        _check_waking(tenant, deadline_ns, now_ns)
    if tenant.queued:
        _check_room(tenant, line, deadline_ns, size, now_ns)
    if line.rated:
        # Of two rates a copy of the one is asked first, so that what the other refuses does not count towards it.
        wait_ns = (copy(line.rate) if tenant.rated else line.rate).admit(now_ns)
        if wait_ns:
            raise _limited(f"model {line.model.name} takes {line.model.rate_per_s:g} requests a second", wait_ns)
    if tenant.rated:
        wait_ns = tenant.rate.admit(now_ns)
        if wait_ns:
            raise _limited(f"tenant {tenant.view.name} may send {tenant.view.rate_per_s:g} requests a second", wait_ns)
        if line.rated:
            line.rate.admit(now_ns)


def _check_room(tenant: Tenant, line: Line, deadline_ns: int, size: int, now_ns: int) -> None:
    """Others wait already: whether there is room for one more, and time."""
    if 0 < tenant.queue_max <= tenant.queued or tenant.queued_bytes + size > tenant.queue_bytes_max:
        raise _full(f"{tenant.queued} requests of tenant {tenant.view.name} are waiting", line)
    if 0 < line.queue_max <= line.queued:
        raise _full(f"{line.queued} requests of model {line.model.name} are waiting", line)
    backlog_ns = line.backlog_ns()
    if deadline_ns and now_ns + backlog_ns > deadline_ns:
        raise error(
            "deadline.exceeded",
            f"about {backlog_ns / 1e6:.0f} ms of work are ahead of it, which the deadline does not leave",
            "raise timeout_s, or slow down",
            retry_after_s=backlog_ns / 1e9,
        )


def _check_waking(tenant: Tenant, deadline_ns: int, now_ns: int) -> None:
    """It has no slot: whether there is time to make one, by what that took the last time."""
    left_ns = tenant.waking_ns - (now_ns - tenant.wanted_ns if tenant.wanted_ns else 0)
    if deadline_ns and left_ns > 0 and now_ns + left_ns > deadline_ns:
        raise error(
            "deadline.exceeded",
            f"tenant {tenant.view.name} is waking up, for about another {left_ns / 1e6:.0f} ms",
            "raise timeout_s, or keep it warm: bedsit tenant set TENANT --min-slots 1",
            retry_after_s=left_ns / _SECOND_NS,
        )


def expired() -> BedsitError:
    """The deadline passed before a worker had the request."""
    return error("deadline.exceeded", "the deadline passed while the request was queued")


def shut(tenant: TenantView) -> BedsitError:
    """The tenant is stopped or about to be, or it was given up."""
    hint = f"it starts again with: bedsit tenant start {tenant.name}"
    if tenant.state == "failed":
        what = f"tenant {tenant.name} was given up: its worker died as often as its restart policy lets it"
        return error("tenant.failed", what, hint)
    return error("tenant.stopped", f"tenant {tenant.name} is stopped", hint)


def quarantined(line: Line) -> BedsitError:
    """The version was taken out of use, and no other one answers for its model."""
    what = f"model {line.model.name} version {line.version} was running when its worker died, again and again"
    return error("model.quarantined", what, "deploy another version, or: bedsit model release")


def _full(what: str, line: Line) -> BedsitError:
    retry_s = min(line.backlog_ns() / _SECOND_NS, 1.0) or _FULL_RETRY_S
    return error("queue.full", what, "slow down and try again", retry_after_s=retry_s)


def _limited(what: str, wait_ns: int) -> BedsitError:
    return error("rate.limited", what, "slow down and try again", retry_after_s=wait_ns / _SECOND_NS)
