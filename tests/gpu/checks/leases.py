"""An arbiter that hands out leases, beside the driver's own slices: fairness, and a victim's tail."""

import select
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from socket import socket
from typing import Any, Final, Literal

from tests.gpu.figures import jain, show
from tests.gpu.peer import Peer
from tests.gpu.report import Report
from tests.gpu.worker import BYE, DONE, GRANT, NEXT, OVER, WANT

Policy = Literal["driver", "fcfs", "sfq"]
_TENANTS: Final = 8
_LONG_MS: Final = 50.0
_SHORT_MS: Final = 5.0
#: Of the 7 beside the victim.
_BATCHES_MS: Final = (5.0, 10.0, 20.0, 50.0, 5.0, 20.0, 50.0)
#: The victim's batch, and how long until its next one on average: 8 % of the GPU.
_VICTIM_MS: Final = 5.0
_GAP_MS: Final = 60.0
_WHOLE: Final = 1e6


@dataclass
class Tenant:
    """Of the arbiter's table; tags are in ms of lease time. The lowest rank goes first."""

    rank: int = 1
    start: float = 0.0
    finish: float = 0.0
    charged_ms: float = 0.0
    asked_at: float | None = None
    is_over: bool = False


def arbitrate(tenants: Mapping[socket, Tenant], policy: Policy, deadline: float) -> float:
    """Grant leases until every tenant is over; gives the seconds in which somebody waited and nobody held one.

    sfq: start-time fair queueing over measured lease time: a request's start tag is the later of virtual time and its
    tenant's last finish tag, the smallest runs next. fcfs: the oldest request. Raises TimeoutError at *deadline*.
    """
    virtual, holder, granted_at, idle_s = 0.0, None, 0.0, 0.0
    free_since = time.monotonic()

    def ask(tenant: Tenant) -> None:
        tenant.asked_at = time.monotonic()
        tenant.start = max(virtual, tenant.finish)

    while not all(tenant.is_over for tenant in tenants.values()):
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("tenants under leases did not end")
        for sock in select.select(list(tenants), [], [], left)[0]:
            word, tenant = sock.recv(16), tenants[sock]
            if word in (DONE, NEXT, OVER, b"") and holder is sock:
                cost = (time.monotonic() - granted_at) * 1e3
                tenant.charged_ms += cost
                tenant.finish = tenant.start + cost
                holder, free_since = None, time.monotonic()
            if word in (WANT, NEXT):
                ask(tenant)
            if word in (OVER, b""):
                tenant.is_over, tenant.asked_at = True, None
            if word == OVER:
                sock.send(BYE)
        waiting = [sock for sock, tenant in tenants.items() if tenant.asked_at is not None]
        if holder is None and waiting:
            key = "start" if policy == "sfq" else "asked_at"
            holder = min(waiting, key=lambda sock: (tenants[sock].rank, getattr(tenants[sock], key)))
            virtual = max(virtual, tenants[holder].start)
            granted_at = time.monotonic()
            asked_at = tenants[holder].asked_at or granted_at
            idle_s += granted_at - max(free_since, asked_at)
            tenants[holder].asked_at = None
            holder.send(GRANT)
        # Its answer is the next thing on this socket, and the peer's to hear.
        tenants = {sock: tenant for sock, tenant in tenants.items() if not tenant.is_over}
    return idle_s


def check(report: Report) -> None:
    """Jain's index of 8 backlogged tenants, then a victim beside 7; by the driver, first come, fair queueing."""
    long_s, short_s = max(1.0, 3.2 * report.scale), max(1.0, 2.0 * report.scale)
    with ExitStack() as stack:
        peers = [stack.enter_context(Peer("worker:compute")) for _ in range(_TENANTS)]
        rounds = peers[0].ask("open")["rounds_per_ms"]
        for peer in peers[1:]:
            peer.tell("open", rounds_per_ms=rounds)
        for peer in peers[1:]:
            peer.hear()
        backlogged = [{"batch_ms": ms} for ms in (_SHORT_MS, _LONG_MS) * (_TENANTS // 2)]
        for policy, chunk_ms, seconds, expect, least in (
            ("driver", _WHOLE, short_s, "", 0.0),
            ("fcfs", _WHOLE, short_s, "0.60 by simulation", 0.0),
            ("sfq", 10.0, long_s, ">= 0.99", 0.99),
        ):
            what = _name(policy, chunk_ms)
            with report.step(f"8 backlogged, {what}"):
                answers, tenants, idle = _run(peers, backlogged, policy, chunk_ms, seconds)  # type: ignore[arg-type]
                index = jain([answer["done_ms"] for answer in answers])
                leased = jain([tenant.charged_ms for tenant in tenants])
                work = sum(answer["done_ms"] for answer in answers) / seconds / 1e3
                figure = f"Jain {index:.3f} of work, {leased:.3f} of leases; busy {work:.1%}, idle {idle / seconds:.2%}"
                report.row(
                    f"8 backlogged, 5 and 50 ms: {what}",
                    figure,
                    expect,
                    index >= least if least else None,
                    done_ms=[answer["done_ms"] for answer in answers],
                )
        _measure_victim(report, peers, short_s, long_s)


def _measure_victim(report: Report, peers: Sequence[Peer], short_s: float, long_s: float) -> None:
    victim = {"batch_ms": _VICTIM_MS, "gap_ms": _GAP_MS, "seed": 1}
    others = [{"batch_ms": ms} for ms in _BATCHES_MS]
    alone: dict[str, Any] = {}
    with report.step("the victim alone"):
        # Under a lease like later: what the arbiter costs is in both.
        answers, _, _ = _run(peers[:1], [victim], "sfq", _WHOLE, long_s)
        alone = answers[0]["latency"]
        report.row("victim alone, 5 ms batches, 8 % load", show(alone), "", **alone)
    for policy, chunk_ms, seconds, limit in (
        ("driver", _WHOLE, long_s, 0.0),
        ("sfq", _WHOLE, long_s, 0.0),
        ("sfq", 10.0, long_s, 2.0),
        ("sfq", 5.0, long_s, 1.5),
    ):
        what = _name(policy, chunk_ms)
        with report.step(f"victim beside 7, {what}"):
            answers, _, idle = _run(peers, [victim, *others], policy, chunk_ms, seconds, first_rank=0)  # type: ignore[arg-type]
            seen = answers[0]["latency"]
            ratio = seen["p99"] / alone["p99"] if alone.get("p99") else 0.0
            work = sum(answer["done_ms"] for answer in answers) / seconds / 1e3
            figure = f"{show(seen)}, p99 {ratio:.2f} x; busy {work:.1%}, idle {idle / seconds:.2%}"
            expect = f"p99 <= {limit:g} x alone" if limit else ""
            chunks = [answer["chunk"] for answer in answers]
            report.row(
                f"victim beside 7: {what}",
                figure,
                expect,
                ratio <= limit if limit else None,
                victim=answers[0],
                chunks=chunks,
            )


def _name(policy: str, chunk_ms: float) -> str:
    if policy == "driver":
        return "driver"
    return f"{policy}, {'whole batches' if chunk_ms == _WHOLE else f'chunks of {chunk_ms:g} ms'}"


def _run(
    peers: Sequence[Peer],
    loads: Sequence[Mapping[str, Any]],
    policy: Policy,
    chunk_ms: float,
    seconds: float,
    first_rank: int = 1,
) -> tuple[list[dict[str, Any]], list[Tenant], float]:
    """Each peer with its load for that long; their answers, the arbiter's table, and its idle seconds."""
    until = time.monotonic() + 0.05 + seconds
    used = peers[: len(loads)]
    for peer, load in zip(used, loads, strict=True):
        peer.tell("lease", chunk_ms=chunk_ms, until=until, free=policy == "driver", **load)
    table = {peer.socket: Tenant(rank=first_rank if number == 0 else 1) for number, peer in enumerate(used)}
    idle = 0.0 if policy == "driver" else arbitrate(table, policy, until + 5)
    return [peer.hear() for peer in used], list(table.values()), idle
