"""Slots as they are: building, assigning, watching and destroying them through zygote, init and cgroup.

The lifecycle decides; this file carries out and reports. A build or an assignment that fails leaves nothing behind.
Messages of a worker come here as bytes: manifests are kept unread, error text is cut and cleaned.
"""

import asyncio
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, ExitStack, suppress
from typing import Any, Final, Literal

import msgspec

from bedsit.ipc import wire
from bedsit.ipc.errors import BedsitError, error
from bedsit.ipc.seqpacket import close_all
from bedsit.ipc.slot import Assignment, Report, decode_report, encode_assignment
from bedsit.sandbox.cgroup import Limits, Stats
from bedsit.sandbox.inspect import REQUIRED_LAYERS, Expected, find_worker, inspect_slot, start_time
from bedsit.sandbox.slices import list_threads, set_slice
from bedsit.supervisor import stimuli as on
from bedsit.supervisor.births import ORDINARY, Birth, NeedsOf, know_no_device
from bedsit.supervisor.blank import await_device, compile_filters, find_device, limit_blank
from bedsit.supervisor.causes import classify
from bedsit.supervisor.log import get_log
from bedsit.supervisor.memory.holder import Holder
from bedsit.supervisor.memory.kinds import Held
from bedsit.supervisor.placement.seating import Seat
from bedsit.supervisor.records import Phase, Record
from bedsit.supervisor.reports import clean_text, read_failure
from bedsit.supervisor.room import LiveSlot, Room
from bedsit.supervisor.tenantlogs import open_logs
from bedsit.supervisor.watch import EndWatch, PacketLink, wait_empty

PROTOCOL: Final = 4
#: What Python and torch need on top of a blank slot before any model is there.
MARGIN_BYTES: Final = 32 << 20
MAX_MANIFEST: Final = 60 << 10
_HELLO_S: Final = 5.0
_EMPTY_S: Final = 10.0
_REMOVE_TRIES: Final = 100
_REMOVE_S: Final = 0.01


class Slots:
    """All slots that run.

    *feed* hears what becomes of them, *progress* what their workers say while they load, *refused* the numbers of
    system calls that are on no list, *ended* what one had used when nothing ran in it any more, *stuck* of one that
    does not end. *needs_of* knows what a device takes, *memory* holds slots to their part of it.
    """

    def __init__(
        self,
        room: Room,
        feed: Callable[[on.Stimulus], None],
        progress: Callable[[str, str], None],
        refused: Callable[[Record, int], None] = lambda _record, _number: None,
        ended: Callable[[LiveSlot, Stats | None], object] = lambda _live, _stats: None,
        needs_of: NeedsOf = know_no_device,
        stuck: Callable[[Record], None] = lambda _record: None,
        memory: Holder | None = None,
    ) -> None:
        self._room = room
        self._memory = memory
        self._needs_of = needs_of
        self._stuck = stuck
        self._refused = refused
        self._ended_with = ended
        self._feed = feed
        self._progress = progress
        self._builds: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._blank_bytes = 0
        #: How long each tenant's slot took last, from its assignment until it served.
        self.load_s: dict[str, float] = {}
        self.live: dict[str, LiveSlot] = {}
        #: Slots that were told to end and may still run: the router hears of them until they do not.
        self.ending: dict[str, Record] = {}

    @property
    def floor_bytes(self) -> int:
        """The least memory that a slot can work with, as far as it was measured."""
        return self._blank_bytes + MARGIN_BYTES

    @property
    def is_measured(self) -> bool:
        """Whether a blank slot has been seen yet."""
        return self._blank_bytes > 0

    def stats(self, slot: str) -> Stats | None:
        """The counters of a slot's cgroup; None when it is gone."""
        try:
            return self._room.backend.stats(slot)
        except (OSError, BedsitError):
            return None

    def inspect(self, slot: str) -> dict[str, str]:
        """The walls of a slot as they are now; kept as the last look at them."""
        live = self.live[slot]
        walls = self._inspect(live.record, live.limits, blank=live.record.tenant is None)
        live.walls, live.walls_read_at = walls, time.monotonic()
        return walls

    # -- building -----------------------------------------------------------------------------------------------------

    def build(self, slot: str, birth: Birth = ORDINARY) -> None:
        """Make a blank slot that is this for life; SlotBuilt or SlotRefused follows."""
        self._builds[slot] = self._run(self._build(slot, birth))

    async def _build(self, slot: str, birth: Birth) -> None:
        try:
            async with AsyncExitStack() as undo:
                live = await self._make(slot, birth, undo)
                undo.pop_all()
        except (BedsitError, OSError, LookupError) as e:
            self._feed(on.SlotRefused(slot, str(e)))
            return
        finally:
            self._builds.pop(slot, None)
        self.live[slot] = live
        walls = live.record.walls
        lacks = list_lacks(walls)
        self._feed(on.SlotBuilt(slot, live.record.generation, degraded=bool(lacks), lacks=lacks))
        self.release(slot)

    async def _make(self, slot: str, birth: Birth, undo: AsyncExitStack) -> LiveSlot:
        room, nonce, limits = self._room, secrets.token_hex(16), limit_blank(birth)
        # As the zygote sees them, which will mount them: under systemd the daemon has no device files.
        zygote = room.zygotes.current
        nodes, env = await find_device(birth, self._needs_of, f"/proc/{zygote.pid}/root" if zygote else "")
        init_uid = room.uids.take()
        undo.push_async_callback(self._clear, slot, init_uid)  # one verb undoes everything below, in the right order
        room.backend.create(slot, nodes)
        room.backend.set_limits(slot, limits)
        held: Held = await self._memory.hold(slot, birth) if self._memory else ""
        folder = room.folders.slot(slot)
        folder.mkdir(0o700)
        os.chown(folder, room.router_uid, init_uid + 1)
        folder.chmod(0o750)  # not by mkdir, which the umask cuts
        with ExitStack() as ours:
            listener = ours.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC))
            listener.bind(str(room.folders.init_socket(slot)))
            listener.listen(8)
            commit_read, commit_write = os.pipe()
            undo.callback(suppress_close, commit_write)  # its end is the slot's end until the commit
            ours.callback(os.close, commit_read)
            group = room.backend.open_group_fd(slot)
            ours.callback(os.close, group)
            joins = room.backend.open_join_fds(slot)
            ours.callback(close_all, joins)
            request = {
                "slot": slot,
                "init_uid": init_uid,
                "worker_uid": init_uid + 1,
                "run_dir": str(folder),
                "tmp_bytes": room.config.tmp_bytes,
                "bundle_bytes": room.config.bundle_bytes,
                "profile": birth.profile,
                **compile_filters(birth),
                "nodes": nodes,
                "env": env | self._memory.describe(birth) if self._memory else env,
                "fds": ["listener", "build", "group", *("join" for _ in joins)],
            }
            generation = room.zygotes.current.generation if room.zygotes.current else 0
            reply = await room.zygotes.spawn(request, [listener.fileno(), commit_read, group, *joins])
        init_pid = int(reply["pid"])
        record = Record(
            slot=slot,
            phase="blank",
            generation=generation,
            init_uid=init_uid,
            worker_uid=init_uid + 1,
            nonce=nonce,
            init_pid=init_pid,
            init_start=start_time(init_pid),
            worker_pid=find_worker(init_pid, room.backend.procs(slot)),
            started_at=room.now(),
            profile=birth.profile,
            device=birth.device,
            memory_bytes=birth.memory_bytes,
            held=held,
            nodes=nodes,
            wire=wire.VERSION,
            proven=tuple(reply["proven"]),
            walls={},
        )
        record = msgspec.structs.replace(record, walls=self._inspect(record, limits, blank=True))
        live = LiveSlot(record, limits, walls=record.walls, walls_read_at=time.monotonic())
        undo.callback(self._let_go, live)
        live.device = asyncio.get_running_loop().create_future() if birth.device else None
        await self._connect(live, nonce="")
        if live.device is not None:
            lacks = await await_device(live.device, birth.device)
            if self._memory is not None:
                await self._memory.meet(slot, birth, lacks)
        self._measure(live.record)
        room.records.save(record)  # before the commit: a committed slot without a record would be a stranger
        os.write(commit_write, b"C" + nonce.encode())
        os.close(commit_write)
        return live

    def _measure(self, record: Record) -> None:
        """Learn from a blank slot what every slot needs. What a device takes on top of that says nothing of others."""
        if not record.device:
            self._blank_bytes = max(self._blank_bytes, self._room.backend.stats(record.slot).memory_bytes)

    def _inspect(self, record: Record, limits: Limits, *, blank: bool) -> dict[str, str]:
        expected = Expected(
            slot=record.slot,
            init_uid=record.init_uid,
            worker_uid=record.worker_uid,
            backend=self._room.backend,
            limits=limits,
            bundle_bytes=self._room.config.bundle_bytes,
            blank=blank,
            proven=record.proven,
            zygote=self._room.zygotes.pid_of(record.generation),
            nodes=record.nodes,
        )
        return inspect_slot(record.init_pid, record.worker_pid, expected)

    # -- connecting ---------------------------------------------------------------------------------------------------

    async def adopt(self, record: Record, limits: Limits) -> Literal["blank", "assigned"]:
        """Take over a slot of an earlier daemon; gives what its init says that it is.

        What it has said meanwhile is held until `release`. Raises ``internal`` when the init is not the one in the
        record, ``worker.crashed`` when its worker ended, OSError when nobody is there.
        """
        live = LiveSlot(record, limits)
        try:
            hello = await self._connect(live, record.nonce)
        except BaseException:
            self._let_go(live)
            raise
        self.live[record.slot] = live
        if hello["state"] == "assigned":
            return "assigned"
        self._measure(record)
        return "blank"

    def release(self, slot: str) -> None:
        """The lifecycle knows of this slot now: say what happened to it meanwhile."""
        live = self.live.get(slot)
        if live is None:
            return
        held, live.held = live.held or [], None
        for message in held:
            self._hear(live, message)
        if live.ended:
            self._tell_end(live)

    async def _connect(self, live: LiveSlot, nonce: str) -> dict[str, Any]:
        """Watch the slot's end and meet its init. The nonce says that it is the one that the record means.

        Only the init of a committed slot has one: it came with the commit.
        """
        record = live.record
        live.hello = asyncio.get_running_loop().create_future()
        live.watch = EndWatch(record.init_pid, lambda: self._init_ended(live))
        if start_time(record.init_pid) != record.init_start:
            raise error("internal", f"process {record.init_pid} is not the init of the record")
        path = str(self._room.folders.init_socket(record.slot))
        live.link = PacketLink(path, lambda message: self._hear(live, message), lambda: self._ended(live, None))
        live.link.send({"op": "hello"})
        try:
            hello: dict[str, Any] = await asyncio.wait_for(asyncio.shield(live.hello), _HELLO_S)
        except TimeoutError:
            raise error("internal", f"the init of slot {record.slot} does not answer") from None
        known = (hello.get("slot"), hello.get("nonce"), hello.get("protocol"))
        if known != (record.slot, nonce, PROTOCOL):
            raise error("internal", f"the init of slot {record.slot} is another one than the record says")
        if hello.get("status") is not None:
            raise error("worker.crashed", f"the worker of slot {record.slot} ended", status=hello["status"])
        return hello

    def _hear(self, live: LiveSlot, message: dict[str, Any]) -> None:
        """A packet of the slot's init, which is ours; the body of "worker" is not."""
        if live.device is not None and not live.device.done() and message.get("op") == "worker":
            live.device.set_result(message["body"])
            return
        if live.held is not None and message.get("op") != "hello":
            live.held.append(message)
            return
        match message.get("op"):
            case "hello" if live.hello and not live.hello.done():
                live.hello.set_result(message)
            case "worker":
                self._hear_worker(live, message["body"])
            case "refused_call":
                self._refused(live.record, message["number"])
            case "assigned":
                self._save(live, "loading")
            case "refused":
                self._ended(live, None)
            case "exited":
                self._ended(live, message.get("status"))

    def _hear_worker(self, live: LiveSlot, body: bytes) -> None:
        kind, index, text = decode_report(body)
        slot, models = live.record.slot, live.record.models
        if live.record.phase not in ("assigning", "loading") or index >= max(len(models), 1):
            return  # nothing that a worker says later matters
        if kind == Report.LOADED and len(text) <= MAX_MANIFEST:
            live.manifests[index] = text
        elif kind == Report.PROGRESS:
            live.loads = models[index] if models else None
            self._progress(slot, clean_text(text[:200]))
        elif kind == Report.FAILED:
            self._feed(on.LoadFailed(slot, read_failure(text), models[index] if models else None))
        elif kind == Report.SERVING:
            live.loads = None
            if live.record.tenant is not None and live.assigned_s is not None:
                self.load_s[live.record.tenant] = time.monotonic() - live.assigned_s
            stats = self.stats(slot)
            self._feed(on.ModelsLoaded(slot, stats.memory_bytes if stats else 0))

    # -- assigning ----------------------------------------------------------------------------------------------------

    def assign(
        self,
        slot: str,
        assignment: Assignment,
        limits: Limits,
        open_artifacts: Sequence[Callable[[], int]],
        seat: Seat | None = None,
    ) -> None:
        """Give a blank slot to a tenant, which sits there; ModelsLoaded, LoadFailed or SlotDied follows."""
        live = self.live[slot]
        models = tuple((model.number, model.version) for model in assignment.models)
        try:
            with ExitStack() as ours:
                fds = open_logs(self._room.folders.logs / assignment.tenant, slot)
                ours.callback(close_all, fds)
                for open_artifact in open_artifacts:
                    fds.append(open_artifact())
                self.set_limits(slot, limits)
                live.assigned_s = time.monotonic()
                now = self._room.now()
                live.record = msgspec.structs.replace(
                    live.record, tenant=assignment.tenant, models=models, assigned_at=now, seat=seat
                )
                self._save(live, "assigning")
                message = {
                    "op": "assign",
                    "body": encode_assignment(assignment),
                    "log_bytes": self._room.config.log_bytes // 2,
                    "fds": ["log", "log", *("artifact" for _ in open_artifacts)],
                }
                if live.link is None or live.ended:
                    raise error("worker.crashed", "the slot ended before it was assigned")
                live.link.send(message, fds)
        except BedsitError as e:
            self._feed(on.LoadFailed(slot, e))

    def set_limits(self, slot: str, limits: Limits) -> None:
        """Change a running slot's limits. Raises ``cgroup.refused``; the old ones hold then."""
        self._room.backend.set_limits(slot, limits)
        if limits.slice_us != self.live[slot].limits.slice_us:
            for pid in self._room.backend.procs(slot):
                set_slice(list_threads(pid), limits.slice_us)
        self.live[slot].limits = limits

    def save_state(self, slot: str, state: Literal["serving", "draining"]) -> None:
        """Write down a slot's state. A record that cannot be written stays behind; recovery copes with that."""
        if slot in self.live:
            try:
                self._save(self.live[slot], state)
            except BedsitError as e:
                get_log().warning("record.stale", slot=slot, error=str(e))

    def _save(self, live: LiveSlot, phase: Phase) -> None:
        live.record = msgspec.structs.replace(live.record, phase=phase)
        self._room.records.save(live.record)

    # -- the end ------------------------------------------------------------------------------------------------------

    def _init_ended(self, live: LiveSlot) -> None:
        if live.link is not None:
            live.link.drain()  # its last words may say how the worker ended
        self._ended(live, None)

    def _ended(self, live: LiveSlot, status: int | None) -> None:
        """The worker (with a wait status) or the whole slot ended."""
        live.status = live.status if status is None else status
        if live.ended:
            return
        live.ended = True
        for awaited in (live.hello, live.device):
            if awaited is not None and not awaited.done():
                awaited.set_exception(error("worker.crashed", f"slot {live.record.slot} ended"))
                awaited.exception()  # nobody may be waiting; that is no bug
        if live.held is None:
            self._tell_end(live)

    def _tell_end(self, live: LiveSlot) -> None:
        """Read the counters while the group is there, and say why it ended."""
        slot, backend = live.record.slot, self._room.backend
        try:
            counts = backend.oom_kills(slot), backend.pids_denied(slot)
        except (OSError, BedsitError):
            counts = 0, 0
        cause = classify(live.status, *counts, live.limits.memory_bytes, live.limits.pids_max)
        self._feed(on.SlotDied(slot, cause, live.loads))

    def destroy(self, slot: str) -> None:
        """End everything in the slot and remove it; SlotGone follows as soon as nothing runs there any more."""
        self._run(self._destroy(slot))

    async def _destroy(self, slot: str) -> None:
        build = self._builds.get(slot)
        if build is not None:
            build.cancel()
            await asyncio.wait([build])
        live = self.live.pop(slot, None)
        if live is not None:
            self._let_go(live)
            self.ending[slot] = live.record
            await self._clear(slot, live.record.init_uid, lambda: self._gone(live))
        else:
            self._feed(on.SlotGone(slot))

    def _gone(self, live: LiveSlot) -> None:
        slot = live.record.slot
        del self.ending[slot]
        self._ended_with(live, self.stats(slot))
        self._feed(on.SlotGone(slot))

    async def _clear(self, slot: str, init_uid: int | None, empty: Callable[[], None] = lambda: None) -> None:
        """Kill, wait until nothing runs, say so through *empty*, remove every trace; the record goes last."""
        backend, folders = self._room.backend, self._room.folders
        with suppress(BedsitError, OSError):
            backend.kill(slot)
        while not await wait_empty(backend, slot, _EMPTY_S):
            get_log().error("slot.unkillable", slot=slot, pids=backend.procs(slot))
            if slot in self.ending:
                self._stuck(self.ending[slot])
        empty()
        if self._memory is not None:
            await self._memory.let_go(slot)
        for _ in range(_REMOVE_TRIES):  # an ended process may hold its v1 groups until its parent has reaped it
            try:
                backend.remove(slot)
                break
            except BedsitError as e:
                reason = str(e)
                await asyncio.sleep(_REMOVE_S)
        else:
            get_log().error("slot.left_behind", slot=slot, error=reason)
            return  # the record stays, for the next daemon to try again
        shutil.rmtree(folders.slot(slot), ignore_errors=True)
        folders.init_socket(slot).unlink(missing_ok=True)
        self._room.records.remove(slot)
        self._room.zygotes.sweep()  # it may have been the last of an old generation
        if init_uid is not None:
            self._room.uids.give_back(init_uid)

    async def end_stranger(self, slot: str, init_uid: int | None) -> None:
        """End and remove whatever exists under that name; for recovery."""
        live = self.live.pop(slot, None)
        if live is not None:
            self._let_go(live)
        await self._clear(slot, init_uid)

    async def wait_idle(self) -> None:
        """Wait until every build and every destruction under way has ended."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """Let go of all slots, alive; half-built ones die."""
        for build in list(self._builds.values()):
            build.cancel()
        await self.wait_idle()
        for live in self.live.values():
            self._let_go(live)
        self.live.clear()

    def _let_go(self, live: LiveSlot) -> None:
        if live.link is not None:
            live.link.close()
        if live.watch is not None:
            live.watch.close()

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            task.get_loop().call_exception_handler({"message": "a slot's task failed", "exception": task.exception()})


def list_lacks(walls: dict[str, str]) -> tuple[str, ...]:
    """The walls that strict tenants need and that are missing."""
    return tuple(sorted(layer for layer in REQUIRED_LAYERS if walls.get(layer) != "on"))


def is_degraded(walls: dict[str, str]) -> bool:
    """Whether a wall is missing that strict tenants need."""
    return bool(list_lacks(walls))


def suppress_close(fd: int) -> None:
    """Close *fd* if it is still open."""
    with suppress(OSError):
        os.close(fd)
