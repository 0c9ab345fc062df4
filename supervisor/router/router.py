"""The router itself: keeps the snapshot's tenants and slots, admits requests, dispatches them, passes answers back.

Guarantees: every admitted request gets exactly one final answer while this process lives, and none before the worker
answered or the daemon confirmed that the slot is gone. Requests of one line are dispatched in order of priority and
arrival. What a request costs here depends neither on how many tenants there are nor on who is idle.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog
import zmq

from bedsit.ipc.errors import BedsitError, error
from bedsit.ipc.snapshot import SlotView, Snapshot, TenantView
from bedsit.ipc.wire import (
    MODELS_PRIORITY,
    Flag,
    Kind,
    pack_error,
    pack_map,
    read_envelope,
    read_fields,
    read_map,
    readdress,
)
from bedsit.supervisor.router import admission, asks
from bedsit.supervisor.router.dispatch import Dispatch
from bedsit.supervisor.router.ingress import Ingress
from bedsit.supervisor.router.loop import Loop
from bedsit.supervisor.router.pressure import Lane, Pressure
from bedsit.supervisor.router.requests import Batch, Request
from bedsit.supervisor.router.sessions import Session
from bedsit.supervisor.router.slots import SlotLink
from bedsit.supervisor.router.tenants import Tenant
from bedsit.supervisor.router.usage import Usage

_BUDGET: Final = 32
_SWEEP_S: Final = 0.1
_REST_S: Final = 0.005  # how long a tenant that was refused for overload is not read
_MAX_ATTEMPTS: Final = 2
_TELL_AGAIN_NS: Final = 500_000_000
_MAX_SOCKETS: Final = 65535
# As plain ints: looking up members of an enum shows in a profile.
_REQUEST: Final = int(Kind.REQUEST)
_CANCEL: Final = int(Kind.CANCEL)
_ERROR: Final = int(Kind.ERROR)
_log = structlog.get_logger("router")


class Router:
    """All state of the data plane.

    *tell* is called with what the daemon should hear, and set by `control`; *hear_first* after the first snapshot, and
    set by `door`.
    """

    def __init__(self, run_dir: Path, loop: Loop) -> None:
        self._run_dir = run_dir
        self._loop = loop
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, _MAX_SOCKETS)
        self._dispatch = Dispatch(loop, self._expire, self._overran)
        self.serial = -1
        self.instance = ""
        self.tenants: dict[str, Tenant] = {}
        self.sessions: dict[int, Session] = {}  # by the number of their arena
        self._tokens: dict[bytes, Session] = {}  # those with a ZeroMQ lane
        self.slots: dict[str, SlotLink] = {}
        self.keys: dict[bytes, tuple[Tenant, str]] = {}  # by digest
        self.tell: Callable[[dict[str, Any]], None] = lambda _message: None
        self.hear_first: Callable[[], None] = lambda: None
        lanes = run_dir / "router" / "lanes"
        lanes.mkdir(exist_ok=True)
        lanes.chmod(0o755)  # whatever the umask says: clients are other users
        self._pressure = Pressure()
        self._usage = Usage()
        loop.later(_SWEEP_S, self._sweep)

    # --- what the daemon says --------------------------------------------------------------------------------------

    def apply(self, snapshot: Snapshot, *, anew: bool = False) -> None:
        """Make the router agree with the snapshot. Older ones than the last of the same instance are ignored.

        *anew*: it is what a daemon begins with, which is right whatever it counts from. One that has lost its count
        takes the clock's, and that may have been set back.
        """
        if not anew and snapshot.instance == self.instance and snapshot.serial <= self.serial:
            return
        is_first = self.serial < 0
        self.serial, self.instance = snapshot.serial, snapshot.instance
        self._loop.spin(snapshot.spin_us)
        self._dispatch.set_devices(snapshot.devices)
        self._apply_tenants({t.name: t for t in snapshot.tenants})
        self._apply_slots({s.id: s for s in snapshot.slots if s.tenant in self.tenants})
        for tenant in self.tenants.values():
            if tenant.waiting:
                self._dispatch.pump(tenant)
        if is_first:
            self.hear_first()

    def _apply_tenants(self, views: dict[str, TenantView]) -> None:
        for name in [n for n in self.tenants if n not in views or views[n].number != self.tenants[n].view.number]:
            self._remove_tenant(self.tenants.pop(name))
        changed: list[Tenant] = []
        for name, view in views.items():
            tenant = self.tenants.get(name)
            if tenant is None:
                path = self._run_dir / "router" / "lanes" / f"{view.number}.sock"
                tenant = self.tenants[name] = Tenant(view, path, self._loop, self._make_ingress, self._drain_port)
                self._dispatch.add(tenant)
                changed.append(tenant)
            elif view != tenant.view:
                before = tenant.lines
                tenant.update(view)
                self._usage.retire(view.number, [line for key, line in before.items() if key not in tenant.lines])
                changed.append(tenant)
                self._end_revoked(tenant)
                self._refuse_retired(tenant)
            if tenant.is_shut and tenant.waiting:
                self._refuse_queued(tenant, admission.shut(view))
        self._dispatch.update(changed)
        self.keys = {key.digest: (t, key.id) for t in self.tenants.values() for key in t.view.keys}

    def _make_ingress(self, tenant: Tenant) -> Ingress:
        return Ingress(self._loop, self._take, self.end_session, partial(self._dispatch.pump, tenant))

    def _remove_tenant(self, tenant: Tenant) -> None:
        for session in [s for s in self.sessions.values() if s.tenant is tenant]:
            self.end_session(session)
        self._dispatch.remove(tenant)
        self._usage.retire(tenant.view.number, tenant.lines.values())
        tenant.close()

    def _end_revoked(self, tenant: Tenant) -> None:
        valid = {key.id for key in tenant.view.keys}
        for session in [s for s in self.sessions.values() if s.tenant is tenant]:
            if session.key_id is not None and session.key_id not in valid:
                self.end_session(session)

    def _apply_slots(self, views: dict[str, SlotView]) -> None:
        for slot_id in [s for s in self.slots if s not in views]:
            self._bury(self.slots.pop(slot_id))
        for slot_id, view in views.items():
            slot = self.slots.get(slot_id)
            if slot is not None:
                if view != slot.view:
                    slot.update(view)
                    self.tenants[view.tenant].assign_slots()
                    self.tenants[view.tenant].count_waking(time.monotonic_ns())
                self._tell_if_drained(slot)
                continue
            try:
                slot = self.slots[slot_id] = SlotLink(
                    view,
                    self._run_dir / "slots" / slot_id,
                    self._loop,
                    on_answer=self._answer,
                    on_ready=self._slot_ready,
                    on_lost=self._slot_lost,
                    on_misbehaved=self._slot_misbehaved,
                    on_turn_over=self._turn_over,
                )
            except OSError as e:
                # The slot went away between the snapshot and now; the next snapshot will not have it.
                _log.warning("cannot serve slot", slot=slot_id, error=str(e))
                continue
            tenant = self.tenants[view.tenant]
            if tenant.port is not None:
                self._open_zmq(slot)
            tenant.slots.append(slot)
            if slot.had_turn:
                self._inherit(slot, tenant)
            self._tell_if_drained(slot)  # it may be draining since before this router started

    def _bury(self, slot: SlotLink) -> None:
        """The daemon confirmed that the slot is gone: nobody can write for its requests any more."""
        tenant = self.tenants.get(slot.view.tenant)
        if tenant is not None and slot in tenant.slots:
            tenant.slots.remove(slot)
            tenant.assign_slots()
            if tenant.gate is not None:
                tenant.gate.disinherit(slot)
        crashed = error("worker.crashed", "the worker died while it had this request", "see `bedsit events`")
        hung = error("model.timeout", "the call ran for longer than the tenant may", "see `bedsit events`")
        orphans = slot.close()
        # What waited behind that at the worker is not to blame, and may be tried as often as if it had waited here.
        ran = set(map(id, _find_running(orphans)))
        self._dispatch.abandon(orphans, slot)
        retry = []
        for request in orphans:
            if id(request) not in ran:
                request.attempts -= 1
            if request.session.closed:
                self._let_go(request.session)  # other workers may have its arena, too
                continue
            if request.withdrawn:
                self._finish(request, error("request.cancelled", "the caller withdrew the request"))
            elif tenant is not None and tenant.view.state == "stopped":
                self._finish(request, admission.shut(tenant.view))
            elif request.rid == slot.hung_rid:
                self._finish(request, hung)
            elif tenant is None or not request.line.model.idempotent or request.attempts >= _MAX_ATTEMPTS:
                self._finish(request, crashed)
            elif tenant.is_shut:
                self._finish(request, admission.shut(tenant.view))
            else:
                retry.append(request)
        if tenant is not None:
            for request in reversed(retry):
                if not request.session.closed:  # finishing one request may have ended the session of another
                    tenant.push(request, first=True)
            self._refuse_retired(tenant)

    def _slot_ready(self, slot: SlotLink) -> None:
        tenant = self.tenants.get(slot.view.tenant)
        if tenant is not None:
            tenant.assign_slots()
            tenant.count_waking(time.monotonic_ns())
            if tenant.gate is not None:
                tenant.gate.disinherit(slot)
            self._dispatch.pump(tenant)

    def _slot_lost(self, slot: SlotLink) -> None:
        tenant = self.tenants.get(slot.view.tenant)
        if tenant is not None:
            tenant.assign_slots()
            if tenant.gate is not None:
                tenant.gate.lose(slot)
        self.tell({"op": "lost", "slot": slot.view.id, "ran": slot.running})

    def _slot_misbehaved(self, slot: SlotLink) -> None:
        self.tell({"op": "misbehaved", "slot": slot.view.id, "count": slot.misbehaved})

    def _inherit(self, slot: SlotLink, tenant: Tenant) -> None:
        if tenant.gate is not None:
            tenant.gate.inherit(slot)
        else:
            slot.page.free()

    def _turn_over(self, slot: SlotLink, *, done: bool) -> bool:
        tenant = self.tenants.get(slot.view.tenant)
        return tenant is not None and tenant.gate is not None and tenant.gate.take_back(slot, done=done)

    def _overran(self, batch: Batch) -> None:
        """It kept a device of others for too long: the daemon ends its slot."""
        slot = batch.slot
        slot.overran = batch.tenant.view.turns_on
        self.tell_overrun(slot)

    def tell_overrun(self, slot: SlotLink) -> None:
        """Say, perhaps once more, that a slot has kept its device for too long."""
        ran_ns = slot.runs_for_ns(time.monotonic_ns())
        slot.hung_rid = slot.running_rid
        device = slot.overran
        self.tell({"op": "overran", "slot": slot.view.id, "ran": slot.running, "on": device, "after_s": ran_ns / 1e9})

    def _tell_if_drained(self, slot: SlotLink) -> None:
        if slot.view.state == "draining" and not slot.in_flight and not slot.drained_told:
            slot.drained_told = True
            self.tell({"op": "drained", "slot": slot.view.id})

    # --- sessions --------------------------------------------------------------------------------------------------

    def add_session(self, session: Session) -> None:
        """A door opened. A session with a token has a ZeroMQ lane, and its door is only watched for its end."""
        tenant = session.tenant
        self.sessions[session.arena.number] = session
        tenant.sessions += 1
        if session.token:
            self._tokens[session.token] = session
            self._loop.watch(session.fd, partial(self.end_session, session))  # it has nothing to say there
            tenant.open_port(self._context)
            for slot in tenant.slots:
                self._open_zmq(slot)
        else:
            tenant.ingress.add(session)

    def _open_zmq(self, slot: SlotLink) -> None:
        try:
            slot.open_zmq(self._context)
        except OSError as e:  # its requests go over the connection, as long as that is there
            _log.warning("no ZeroMQ lane to a slot", slot=slot.view.id, error=str(e))

    def end_session(self, session: Session) -> None:
        """A door closed: queued requests are dropped, those in flight are waited for without anyone to tell."""
        if session.closed:
            return
        tenant = session.tenant
        if session.token:
            self._loop.unwatch(session.fd)
            del self._tokens[session.token]
        else:
            tenant.ingress.remove(session)
        session.close()
        del self.sessions[session.arena.number]
        tenant.sessions -= 1
        for request in session.requests.values():
            if not tenant.drop(request):
                self._withdraw(request)
        session.requests.clear()
        self._let_go(session)

    def _let_go(self, session: Session) -> None:
        if not session.in_flight:
            for slot in session.tenant.slots:
                slot.forget_arena(session)

    # --- requests --------------------------------------------------------------------------------------------------

    def _drain_port(self, tenant: Tenant) -> None:
        port = tenant.port
        for _ in range(_BUDGET):
            got = port.receive() if port is not None and port is tenant.port else None
            if got is None:
                break
            if got[0]:
                tenant.received += 1
            session = self._tokens.get(got[0])
            if session is not None and session.tenant is tenant:
                self._take(session, got[1])
            # else no session speaks with that token: there is nobody to answer
        else:
            tenant.look_again()
        self._dispatch.pump(tenant)

    def _take(self, session: Session, packet: bytes) -> None:
        try:
            fields = read_fields(packet)
        except BedsitError as e:
            self._send(session, pack_error(0, e))
            return
        kind, ident = fields[2], fields[4]
        if kind == _CANCEL:
            self._cancel(session, ident)
            return
        if ident in session.requests:
            # Answering would finish the wrong one: a client that reuses an id that is in flight loses its session.
            self.end_session(session)
            return
        try:
            if kind == _REQUEST:
                self._admit(session, fields, packet)
            elif kind == Kind.ASK:
                self._send(session, pack_map(Kind.TOLD, ident, self._tell_client(session.tenant, packet)))
            else:
                raise error("wire.malformed", f"a packet of kind {kind} is not for the router")
        except BedsitError as e:
            self._refuse(session, ident, e)

    def _admit(self, session: Session, fields: tuple[int, ...], packet: bytes) -> None:
        _, _, _, arena, ident, _, flags, priority, _, model, version, deadline_ns, rows, _, _, _ = fields
        tenant = session.tenant
        line = tenant.lines.get((model, version))
        if line is None or not line.is_default:
            line = admission.find_line(tenant, model, version, pinned=bool(flags & Flag.PINNED))
        if arena != session.arena_number:
            raise error("wire.malformed", "the request names an arena that is not this session's")
        if 0 < tenant.queue_max <= tenant.queued:
            self._dispatch.pump(tenant)  # what came in the same turn may find room in a slot
        now_ns = time.monotonic_ns()
        if not line.slots and tenant.is_open and not line.is_quarantined:
            self._want(tenant, now_ns)
        admission.check(tenant, line, deadline_ns, len(packet), now_ns)
        if priority >= MODELS_PRIORITY:
            priority = line.priority
        request = Request(session, line, packet, ident, deadline_ns, rows, priority, now_ns)
        session.requests[ident] = request
        if not self._dispatch.send_now(tenant, request):
            tenant.push(request)

    def _want(self, tenant: Tenant, now_ns: int) -> None:
        """A request waits for the tenant's first slot: tell the daemon, and again while nothing comes."""
        tenant.wanted_ns = tenant.wanted_ns or now_ns
        if now_ns - tenant.told_ns > _TELL_AGAIN_NS:
            tenant.told_ns = now_ns
            self.tell({"op": "wanted", "tenant": tenant.view.name})

    def _tell_client(self, tenant: Tenant, packet: bytes) -> dict[str, Any]:
        wait_ns = tenant.rate.admit(time.monotonic_ns())
        if wait_ns:
            raise error("rate.limited", "too many questions", "slow down", retry_after_s=wait_ns / 1e9)
        return asks.answer(tenant, read_map(packet, read_envelope(packet)))

    def _refuse(self, session: Session, ident: int, failure: BedsitError) -> None:
        tenant = session.tenant
        tenant.requests_total += 1
        tenant.errors_total += 1
        if "retry_after_s" in failure.detail:
            tenant.refused_total += 1
        self._send(session, pack_error(ident, failure))
        if failure.code in admission.OVERLOAD:
            # Refusing costs as much as serving: who floods is read a little at a time, so that it still learns of it.
            tenant.held_off = 0 < tenant.queue_max <= tenant.queued  # else room for one is no reason to read on
            tenant.ingress.rest(_REST_S)

    def _cancel(self, session: Session, ident: int) -> None:
        request = session.requests.get(ident)
        if request is None:
            return
        if session.tenant.drop(request):
            self._finish(request, error("request.cancelled", "the caller withdrew the request"))
        else:  # a worker has it: the final answer comes when the worker let go of the memory
            self._withdraw(request)

    def _withdraw(self, request: Request) -> None:
        if not request.withdrawn:
            request.withdrawn = True
            if request.slot is not None:
                request.slot.cancel(request)

    def _answer(self, slot: SlotLink, request: Request, kind: int, packet: bytes) -> None:
        session = request.session
        tenant = session.tenant
        self._dispatch.answered(request, slot)
        tenant.requests_total += 1
        if kind == _ERROR:
            tenant.errors_total += 1
        if session.closed:
            self._let_go(session)
        else:
            del session.requests[request.id]
            if not session.send(readdress(packet, kind, request.id)):
                self.end_session(session)  # see _send
        if slot.is_draining:
            self._tell_if_drained(slot)
        if tenant.waiting or tenant.gate is not None:
            self._dispatch.pump(tenant)

    def _expire(self, request: Request) -> None:
        self._finish(request, admission.expired())

    def _finish(self, request: Request, failure: BedsitError) -> None:
        """The final answer to a request that no worker answers."""
        session = request.session
        session.tenant.requests_total += 1
        session.tenant.errors_total += 1
        if not session.closed:
            session.requests.pop(request.id, None)
            self._send(session, pack_error(request.id, failure))

    def _send(self, session: Session, packet: bytes) -> None:
        if not session.send(packet):
            # It reads nothing, or its lane is gone: keeping answers for it would let it fill our memory.
            self.end_session(session)

    def _refuse_queued(self, tenant: Tenant, failure: BedsitError) -> None:
        for request in [request for line in tenant.waiting for request in line.waiting()]:
            if tenant.drop(request):  # finishing the one before may have ended its session
                self._finish(request, failure)

    def _refuse_retired(self, tenant: Tenant) -> None:
        """No slot will have a version that is not registered any more, or in quarantine: do not let it wait for one."""
        deleted = error("model.not_found", "this version of the model has been deleted")
        for line in list(tenant.waiting):
            is_gone = tenant.lines.get(line.key) is not line
            if is_gone or line.is_quarantined:
                for request in list(line.waiting()):
                    if tenant.drop(request):
                        self._finish(request, deleted if is_gone else admission.quarantined(line))

    # --- now and then ----------------------------------------------------------------------------------------------

    def _lanes(self) -> dict[str, Lane]:
        lanes = {
            slot.lane_path: Lane(1, slot.received, slot.cut_off) for slot in self.slots.values() if slot.lane_is_open
        }
        sessions = dict.fromkeys(self.tenants, 0)
        for session in self._tokens.values():
            sessions[session.tenant.view.name] += 1
        return lanes | {
            str(tenant.path): Lane(sessions[name], tenant.received, partial(tenant.reopen_port, self._context))
            for name, tenant in self.tenants.items()
            if tenant.port is not None
        }

    def _sweep(self) -> None:
        self._loop.later(_SWEEP_S, self._sweep)
        if cut := self._pressure.look(self._lanes):
            _log.error("cut a lane that used up this process", lane=cut)
        now_ns = time.monotonic_ns()
        for slot in self.slots.values():
            self._look_if_hung(slot, now_ns)
        for tenant in self.tenants.values():
            if tenant.waiting:
                if not any(line.slots for line in tenant.waiting):
                    self._want(tenant, now_ns)
                late = [r for line in tenant.waiting for r in line.waiting() if 0 < r.deadline_ns <= now_ns]
                for request in late:
                    if tenant.drop(request):
                        self._expire(request)

    def _look_if_hung(self, slot: SlotLink, now_ns: int) -> None:
        tenant = self.tenants.get(slot.view.tenant)
        ran_ns = slot.runs_for_ns(now_ns)
        if tenant is not None and 0 < tenant.run_max_ns < ran_ns and slot.hung_rid != slot.running_rid:
            slot.hung_rid = slot.running_rid
            self.tell({"op": "hung", "slot": slot.view.id, "ran": slot.running, "after_s": ran_ns / 1e9})

    def activity(self) -> dict[str, tuple[int, int, bool]]:
        """Time of workers used and waited for, in us, of those tenants that had requests since it was asked last.

        Beside it whether one of them found every worker busy.
        """
        active = {}
        for name, tenant in self.tenants.items():
            if tenant.requests_total != tenant.seen_total or tenant.queued or tenant.in_flight:
                tenant.seen_total = tenant.requests_total
                backlog_ns = sum(line.cost_ns * line.count_behind() for line in tenant.lines.values())
                active[name] = (tenant.busy_ns // 1000, backlog_ns // 1000, tenant.crowded or backlog_ns > 0)
                tenant.crowded = False
        return active

    def usage(self, *, anew: bool) -> Any:
        """What was used since this process began, as a message; only what is news unless *anew*."""
        lines = ((tenant.view.number, line) for tenant in self.tenants.values() for line in tenant.lines.values())
        return self._usage.tell(lines, self._dispatch, time.monotonic_ns(), anew=anew)

    def statistics(self) -> dict[str, dict[str, int]]:
        """Counters per tenant; *busy_us* is what its workers were clocked at."""
        return {
            name: {
                "requests": tenant.requests_total,
                "errors": tenant.errors_total,
                "refused": tenant.refused_total,
                "queued": tenant.queued,
                "queued_bytes": tenant.queued_bytes,
                "in_flight": tenant.in_flight,
                "sessions": tenant.sessions,
                "busy_us": tenant.busy_ns // 1000,
            }
            for name, tenant in self.tenants.items()
        }

    def close(self) -> None:
        """Close every socket and remove what this process made in the run folder."""
        for session in list(self.sessions.values()):
            self.end_session(session)
        for slot in self.slots.values():
            slot.close()
        for tenant in self.tenants.values():
            tenant.close()
        self._context.destroy(0)


def _find_running(orphans: Sequence[Request]) -> Sequence[Request]:
    """Of what a worker had when it ended, oldest first, what it was at: the first of it, and the rest of its batch."""
    first = orphans[:1]
    batch = first[0].batch if first else None
    return [request for request in orphans if request in first or (batch is not None and request.batch is batch)]
