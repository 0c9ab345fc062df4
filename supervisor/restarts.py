"""What a slot's death means for its tenant: another try, a rest before it, giving up, taking a version out of use.

Pure: each function changes the tenant, and gives the instructions that follow. A part of the lifecycle's judgement.
"""

from collections.abc import Iterator

from bedsit.supervisor import instructions as do
from bedsit.supervisor.causes import Cause
from bedsit.supervisor.policy import Place
from bedsit.supervisor.stimuli import Timer
from bedsit.supervisor.tenancy import Slot, Tenant, backoff_s


def mourn(tenant: Tenant, slot: Slot, cause: Cause) -> Iterator[do.Instruction]:
    """A slot of the crew has died, or has to, for a reason that counts against its tenant."""
    del tenant.crew[slot.id]
    tenant.cause = cause
    tenant.failures += 1
    tenant.deaths += 1
    yield do.StopTimer(Timer("healthy", tenant.name))
    yield do.CountRestart(tenant.name, cause)
    policy = tenant.policy
    if tenant.deaths == 1:
        yield do.SetTimer(Timer("period", tenant.name), policy.restart_period_s)
    if policy.restart == "temporary" or (policy.restart == "transient" and cause.is_orderly):
        yield _give_up(tenant, f"its restart policy is {policy.restart}, and it ended: {cause.text}")
    elif 0 < policy.restarts_max < tenant.deaths:
        yield _give_up(tenant, f"{tenant.deaths} deaths within {policy.restart_period_s:g} s")
    else:
        delay_s = backoff_s(tenant.failures)
        if delay_s:
            tenant.resting = True
            yield do.SetTimer(Timer("restart", tenant.name), delay_s)
        yield from blame(tenant, slot.blame)
        slot.is_unexplained = slot.blame is None


def blame(tenant: Tenant, place: Place | None) -> Iterator[do.Instruction]:
    """Count what was running. What ran at every one of so many deaths in a row is taken out of use."""
    if place is None or place not in tenant.models or not tenant.policy.quarantine_after:
        return
    tenant.blames[place] += 1
    if tenant.blames[place] >= tenant.policy.quarantine_after:
        del tenant.blames[place]
        text = f"was running at {tenant.policy.quarantine_after} deaths in a row"
        yield do.Quarantine(tenant.name, place, text)


def forgive(tenant: Tenant) -> Iterator[do.Instruction]:
    """Start anew with it: no rest any more, a restart may come at once."""
    if tenant.deaths:
        yield do.StopTimer(Timer("period", tenant.name))
    tenant.failures = tenant.deaths = 0
    tenant.blames.clear()
    tenant.given_up = False
    if tenant.resting:
        tenant.resting = False
        yield do.StopTimer(Timer("restart", tenant.name))


def _give_up(tenant: Tenant, why: str) -> do.Instruction:
    tenant.given_up = True
    text = f"{why}; it starts again with: bedsit tenant start {tenant.name}"
    return do.Tell("tenant.given_up", text, tenant.name)
