"""The router itself: keeps the snapshot's tenants and slots, admits requests, dispatches them, passes answers back.

Guarantees: every admitted request gets exactly one final answer while this process lives, and none before the worker
answered or the daemon confirmed that the slot is gone. Requests of one tenant are dispatched in order; tenants share
nothing but this loop, which reads each endpoint with a budget per turn.
"""

import itertools
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog
import zmq

from bedsit.ipc.errors import BedsitError, error
from bedsit.ipc.snapshot import ModelView, SlotView, Snapshot, TenantView
from bedsit.ipc.wire import Envelope, Kind, encode_error, pack_packet, read_envelope, readdress
from bedsit.supervisor.router.loop import Loop
from bedsit.supervisor.router.pressure import Lane, Pressure
from bedsit.supervisor.router.requests import Request
from bedsit.supervisor.router.sessions import Session
from bedsit.supervisor.router.slots import SlotLink
from bedsit.supervisor.router.tenants import Tenant

_BUDGET: Final = 32
_SWEEP_S: Final = 0.1
_MAX_ATTEMPTS: Final = 2
_MAX_SOCKETS: Final = 65535
_log = structlog.get_logger("router")


class Router:
    """All state of the data plane. *tell* is called with what the daemon should hear; `control` sets and sends it."""

    def __init__(self, run_dir: Path, loop: Loop) -> None:
        self._run_dir = run_dir
        self._loop = loop
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, _MAX_SOCKETS)
        self._rids = itertools.count(1)
        self.serial = -1
        self.instance = ""
        self.tenants: dict[str, Tenant] = {}
        self.sessions: dict[bytes, Session] = {}
        self.slots: dict[str, SlotLink] = {}
        self.keys: dict[bytes, tuple[Tenant, str]] = {}  # by digest
        self.tell: Callable[[dict[str, Any]], None] = lambda _message: None
        lanes = run_dir / "router" / "lanes"
        lanes.mkdir(exist_ok=True)
        lanes.chmod(0o755)  # whatever the umask says: clients are other users
        self._pressure = Pressure()
        loop.later(_SWEEP_S, self._sweep)

    # --- what the daemon says --------------------------------------------------------------------------------------

    def apply(self, snapshot: Snapshot) -> None:
        """Make the router agree with the snapshot. Older ones than the last of the same instance are ignored."""
        if snapshot.instance == self.instance and snapshot.serial <= self.serial:
            return
        self.serial, self.instance = snapshot.serial, snapshot.instance
        self._apply_tenants({t.name: t for t in snapshot.tenants})
        self._apply_slots({s.id: s for s in snapshot.slots if s.tenant in self.tenants})
        for tenant in self.tenants.values():
            self.pump(tenant)

    def _apply_tenants(self, views: dict[str, TenantView]) -> None:
        for name in [n for n in self.tenants if n not in views or views[n].number != self.tenants[n].view.number]:
            self._remove_tenant(self.tenants.pop(name))
        for name, view in views.items():
            tenant = self.tenants.get(name)
            if tenant is None:
                path = self._run_dir / "router" / "lanes" / f"{view.number}.sock"
                drain = partial(self._drain_tenant, name)
                tenant = self.tenants[name] = Tenant(view, path, self._context, self._loop, drain)
                tenant.start()
            else:
                tenant.update(view)
                self._end_revoked(tenant)
                self._refuse_retired(tenant)
            if view.state == "stopped":
                self._refuse_queued(tenant, _stopped(name))
        self.keys = {key.digest: (t, key.id) for t in self.tenants.values() for key in t.view.keys}

    def _remove_tenant(self, tenant: Tenant) -> None:
        for session in [s for s in self.sessions.values() if s.tenant is tenant]:
            self.end_session(session)
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
                slot.update(view)
                self._tell_if_drained(slot)
                continue
            try:
                slot = self.slots[slot_id] = SlotLink(
                    view,
                    self._run_dir / "slots" / slot_id,
                    self._context,
                    self._loop,
                    on_answer=self._answer,
                    on_ready=self._slot_ready,
                    on_lost=self._slot_lost,
                    on_misbehaved=self._slot_misbehaved,
                )
            except OSError as e:
                # The slot went away between the snapshot and now; the next snapshot will not have it.
                _log.warning("cannot serve slot", slot=slot_id, error=str(e))
                continue
            self._tell_if_drained(slot)  # it may be draining since before this router started

    def _bury(self, slot: SlotLink) -> None:
        """The daemon confirmed that the slot is gone: nobody can write for its requests any more."""
        tenant = self.tenants.get(slot.view.tenant)
        crashed = error("worker.crashed", "the worker died while it had this request", "see `bedsit events`")
        retry = []
        for request in slot.close():
            if request.withdrawn or request.session.closed:
                self._finish(request, error("request.cancelled", "the caller withdrew the request"))
            elif tenant is not None and tenant.view.state == "stopped":
                self._finish(request, _stopped(tenant.view.name))
            elif tenant is None or not request.idempotent or request.attempts >= _MAX_ATTEMPTS:
                self._finish(request, crashed)
            else:
                retry.append(request)
        if tenant is not None:
            # Finishing one request may have ended the session of another.
            tenant.queue.extendleft(request for request in reversed(retry) if not request.session.closed)
            self._refuse_retired(tenant)

    def _slot_ready(self, slot: SlotLink) -> None:
        tenant = self.tenants.get(slot.view.tenant)
        if tenant is not None:
            self.pump(tenant)

    def _slot_lost(self, slot: SlotLink) -> None:
        self.tell({"op": "lost", "slot": slot.view.id})

    def _slot_misbehaved(self, slot: SlotLink) -> None:
        self.tell({"op": "misbehaved", "slot": slot.view.id, "count": slot.misbehaved})

    def _tell_if_drained(self, slot: SlotLink) -> None:
        if slot.view.state == "draining" and not slot.in_flight and not slot.drained_told:
            slot.drained_told = True
            self.tell({"op": "drained", "slot": slot.view.id})

    # --- sessions --------------------------------------------------------------------------------------------------

    def add_session(self, session: Session) -> None:
        """A door opened."""
        self.sessions[session.token] = session
        session.tenant.sessions += 1

    def end_session(self, session: Session) -> None:
        """A door closed: queued requests are dropped, those in flight are waited for without anyone to tell."""
        if session.closed:
            return
        self._loop.unwatch(session.door.fileno())
        session.close()
        del self.sessions[session.token]
        session.tenant.sessions -= 1
        queue = session.tenant.queue
        if any(request.session is session for request in queue):
            kept = [request for request in queue if request.session is not session]
            queue.clear()
            queue.extend(kept)
        self._let_go(session)

    def _let_go(self, session: Session) -> None:
        for slot in self.slots.values():
            if slot.view.tenant == session.tenant.view.name and not slot.holds(session):
                slot.forget_arena(session)

    # --- requests --------------------------------------------------------------------------------------------------

    def _drain_tenant(self, name: str) -> None:
        tenant = self.tenants.get(name)
        if tenant is None:
            return
        receive = tenant.port.receive
        for _ in range(_BUDGET):
            got = receive()
            if got is None:
                break
            tenant.received += 1
            session = self.sessions.get(got[0])
            if session is None or session.tenant is not tenant:
                continue  # no session speaks with that token: there is nobody to answer
            self._take(session, got[1])
        else:
            self._loop.again(tenant.drain)
        self.pump(tenant)

    def _take(self, session: Session, packet: bytes) -> None:
        try:
            envelope = read_envelope(packet)
        except BedsitError as e:
            self._send(session, pack_packet(Kind.ERROR, 0, encode_error(e)))
            return
        if envelope.kind == Kind.CANCEL:
            self._cancel(session, envelope.id)
            return
        if envelope.id in session.requests:
            # Answering would finish the wrong one: a client that reuses an id that is in flight loses its session.
            self.end_session(session)
            return
        try:
            request = self._admit(session, envelope, packet)
        except BedsitError as e:
            session.tenant.requests_total += 1
            session.tenant.errors_total += 1
            self._send(session, pack_packet(Kind.ERROR, envelope.id, encode_error(e)))
            return
        session.requests[envelope.id] = request
        session.tenant.queue.append(request)

    def _admit(self, session: Session, envelope: Envelope, packet: bytes) -> Request:
        tenant = session.tenant
        if envelope.kind != Kind.REQUEST:
            raise error("wire.malformed", f"a packet of kind {envelope.kind} is not for the router")
        if tenant.view.state == "stopped":
            raise _stopped(tenant.view.name)
        model = tenant.models.get(envelope.model)
        if model is None:
            raise error("model.not_found", f"tenant {tenant.view.name} has no such model any more")
        version = find_version(model, envelope.model_version)
        if envelope.arena != session.arena.number:
            raise error("wire.malformed", "the request names an arena that is not this session's")
        if tenant.is_full():
            self.pump(tenant)  # what came in the same turn may find room in a slot
        if tenant.is_full():
            raise error(
                "queue.full",
                f"{len(tenant.queue)} requests of tenant {tenant.view.name} are waiting",
                "slow down and try again",
                retry_after_s=0.05,
            )
        return Request(session, envelope, packet, version, model.idempotent)

    def _cancel(self, session: Session, ident: int) -> None:
        request = session.requests.get(ident)
        if request is None:
            return
        request.withdrawn = True
        try:
            session.tenant.queue.remove(request)
        except ValueError:
            return  # a worker has it: the final answer comes when the worker let go of the memory
        self._finish(request, error("request.cancelled", "the caller withdrew the request"))

    def pump(self, tenant: Tenant) -> None:
        """Dispatch from the head of the queue for as long as a slot has room."""
        queue = tenant.queue
        while queue:
            request = queue[0]
            if request.is_expired():
                queue.popleft()
                self._finish(request, _expired())
                continue
            slot = self._pick(tenant, request)
            if slot is None:
                return
            queue.popleft()
            slot.dispatch(next(self._rids), request)

    def _pick(self, tenant: Tenant, request: Request) -> SlotLink | None:
        best = None
        wanted = (request.envelope.model, request.version)
        for slot in self.slots.values():
            if (
                slot.view.tenant == tenant.view.name
                and slot.is_ready
                and len(slot.in_flight) < tenant.view.max_inflight
                and wanted in slot.models
                and (best is None or len(slot.in_flight) < len(best.in_flight))
            ):
                best = slot
        return best

    def _answer(self, slot: SlotLink, request: Request, envelope: Envelope, packet: bytes) -> None:
        tenant = request.session.tenant
        tenant.requests_total += 1
        if envelope.kind == Kind.ERROR:
            tenant.errors_total += 1
        if request.session.closed:
            self._let_go(request.session)
        else:
            del request.session.requests[request.envelope.id]
            self._send(
                request.session,
                readdress(packet, envelope, request.envelope.id, model_version=request.version, arena=0),
            )
        self._tell_if_drained(slot)
        self.pump(tenant)

    def _finish(self, request: Request, failure: BedsitError) -> None:
        """The final answer to a request that no worker answers."""
        tenant = request.session.tenant
        tenant.requests_total += 1
        tenant.errors_total += 1
        if not request.session.closed:
            request.session.requests.pop(request.envelope.id, None)
            self._send(request.session, pack_packet(Kind.ERROR, request.envelope.id, encode_error(failure)))

    def _send(self, session: Session, packet: bytes) -> None:
        if not session.tenant.port.send(session.token, packet):
            # It reads nothing, or its lane is gone: keeping answers for it would let it fill our memory.
            self.end_session(session)
        self._loop.again(session.tenant.drain)

    def _refuse_queued(self, tenant: Tenant, failure: BedsitError) -> None:
        while tenant.queue:
            self._finish(tenant.queue.popleft(), failure)

    def _refuse_retired(self, tenant: Tenant) -> None:
        """No slot will ever have a version that is not registered any more: do not let it block the queue."""
        known = {(number, v.version) for number, model in tenant.models.items() for v in model.versions}
        for request in [r for r in tenant.queue if (r.envelope.model, r.version) not in known]:
            if not request.session.closed:
                tenant.queue.remove(request)
                self._finish(request, error("model.not_found", "this version of the model has been deleted"))

    def _lanes(self) -> dict[str, Lane]:
        lanes = {
            slot.lane_path: Lane(1, slot.received, slot.cut_off) for slot in self.slots.values() if slot.lane_is_open
        }
        return lanes | {str(t.path): Lane(t.sessions, t.received, t.reopen) for t in self.tenants.values()}

    def _sweep(self) -> None:
        self._loop.later(_SWEEP_S, self._sweep)
        if cut := self._pressure.look(self._lanes):
            _log.error("cut a lane that used up this process", lane=cut)
        for tenant in self.tenants.values():
            if tenant.queue:
                expired = [r for r in tenant.queue if r.is_expired()]
                for request in expired:
                    if not request.session.closed:  # finishing the one before may have ended it, and emptied its queue
                        tenant.queue.remove(request)
                        self._finish(request, _expired())

    # --- what others ask -------------------------------------------------------------------------------------------

    def statistics(self) -> dict[str, dict[str, int]]:
        """Counters per tenant."""
        in_flight = dict.fromkeys(self.tenants, 0)
        for slot in self.slots.values():
            in_flight[slot.view.tenant] = in_flight.get(slot.view.tenant, 0) + len(slot.in_flight)
        return {
            name: {
                "requests": tenant.requests_total,
                "errors": tenant.errors_total,
                "queued": len(tenant.queue),
                "in_flight": in_flight[name],
                "sessions": tenant.sessions,
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


def find_version(model: ModelView, version: int) -> int:
    """The version that a request means, 0 being the default. Raises ``model.not_found``."""
    wanted = version or model.default
    known: Iterable[int] = (v.version for v in model.versions)
    if wanted not in known:
        raise error("model.not_found", f"model {model.name} has no version {wanted}")
    return wanted


def _expired() -> BedsitError:
    return error("deadline.exceeded", "the deadline passed while the request was queued")


def _stopped(name: str) -> BedsitError:
    return error("tenant.stopped", f"tenant {name} is stopped", "`bedsit tenant start` starts it")
