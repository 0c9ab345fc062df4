"""The daemon: puts its parts together, runs the lifecycle, and lets go of everything in the right order.

Crash-only: leaving (SIGTERM, SIGINT) leaves zygote and slots alone, as a crash would; only ``down`` ends them.
"""

import asyncio
import os
import secrets
import shutil
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Final

import bedsit
from bedsit.ipc.errors import BedsitError
from bedsit.ipc.notify import Notifier
from bedsit.sandbox.cgroup import CgroupBackend, Stats
from bedsit.supervisor import stimuli as on
from bedsit.supervisor.admin.server import AdminServer
from bedsit.supervisor.artifacts import Artifacts
from bedsit.supervisor.atomic import remove_unfinished
from bedsit.supervisor.books import Books, hour_of
from bedsit.supervisor.config import Config
from bedsit.supervisor.control import Control
from bedsit.supervisor.cores import Cores
from bedsit.supervisor.desk import Desk, now_text, wish_of
from bedsit.supervisor.devices.claims import Claims
from bedsit.supervisor.devices.partitions.declared import read_partitions
from bedsit.supervisor.devices.partitions.keeper import Partitions
from bedsit.supervisor.devices.partitions.there import list_seats
from bedsit.supervisor.devices.watch import Devices
from bedsit.supervisor.effects import Effects
from bedsit.supervisor.events import Events
from bedsit.supervisor.folders import (
    Folders,
    find_admin_gid,
    find_router_ids,
    lock_run,
    lock_state,
    lock_uids,
    make_folders,
    make_roots,
)
from bedsit.supervisor.generations import Generations
from bedsit.supervisor.holdings import Holding, list_holdings
from bedsit.supervisor.ledger import Ledger
from bedsit.supervisor.lifecycle import House
from bedsit.supervisor.log import get_log
from bedsit.supervisor.memory.holder import Holder
from bedsit.supervisor.memory.watcher import Watcher
from bedsit.supervisor.meter import Look
from bedsit.supervisor.operations import Operations
from bedsit.supervisor.publisher import Publisher
from bedsit.supervisor.records import Records
from bedsit.supervisor.recovery import Recovery, find_backend
from bedsit.supervisor.refusedcalls import RefusedCalls
from bedsit.supervisor.registry import Registry
from bedsit.supervisor.room import LiveSlot, Room
from bedsit.supervisor.slots import Slots
from bedsit.supervisor.tenancy import Limits
from bedsit.supervisor.tenantlogs import keep_logs
from bedsit.supervisor.timers import Timers
from bedsit.supervisor.uids import UidPairs
from bedsit.supervisor.units import ADMIN_SOCKET, UnitStarter, call_systemctl, is_unit
from bedsit.supervisor.usher import Usher
from bedsit.supervisor.zygotes import Zygotes

_DOWN_S: Final = 30.0


class Daemon:
    """One run of bedsitd. ``run`` returns when it was told to leave, or raises what kept it from working."""

    def __init__(self, config: Config, held: socket.socket | None = None) -> None:
        """*held*: the listener of the admin socket, where systemd holds it."""
        self._config = config
        self._held = held
        self._inbox: deque[on.Stimulus] = deque()
        self._busy = False
        self._waiters: list[tuple[Callable[[], bool], asyncio.Future[bool]]] = []
        self._leave = asyncio.Event()
        self._finished = asyncio.Event()
        self._failure: BaseException | None = None
        self._desk: Desk
        self._look: Look
        self._watcher: Watcher

    async def run(self, notifier: Notifier) -> None:
        """Come up, serve, go. Raises BedsitError before anything was changed when it cannot come up."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._fail)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._leave.set)
        async with AsyncExitStack() as undo:
            desk = self._desk = await self._assemble(undo)
            notifier.tell("STATUS=looking for the slots of an earlier daemon")
            await self._recover(desk)
            server = AdminServer(desk, find_admin_gid(self._config), self._held)
            await server.open()
            undo.push_async_callback(server.close)
            desk.events.add("daemon.started", f"bedsit {bedsit.__version__}, pid {os.getpid()}")
            self.feed(on.Begin())
            notifier.tell("READY=1", f"STATUS=serving {len(desk.house.tenants)} tenants")
            partitions, devices, books = desk.partitions, desk.devices, desk.books
            works = self._look.run, self._watcher.run, partitions.run, devices.run, books.run
            for endless in (self._watch(notifier), *(work() for work in works)):
                task = loop.create_task(endless)
                undo.callback(task.cancel)
                task.add_done_callback(self._hear_end)
            await self._leave.wait()
            notifier.tell("STOPPING=1")
            desk.events.add("daemon.stopped", "slots live on" if desk.house.slots else "no slot is left")
        if self._failure is not None:
            raise self._failure

    def feed(self, stimulus: on.Stimulus) -> None:
        """Let the lifecycle hear *stimulus*, after what waits already."""
        self._inbox.append(stimulus)
        self._work()

    def _feed_next(self, stimulus: on.Stimulus) -> None:
        self._inbox.appendleft(stimulus)
        self._work()

    def _work(self) -> None:
        """Stimuli that arise while one is handled wait for their turn: the lifecycle is never entered twice."""
        if self._busy:
            return
        self._busy = True
        try:
            while self._inbox:
                for instruction in self._desk.house.handle(self._inbox.popleft()):
                    self._desk.effects.carry_out(instruction)
        except Exception as e:
            self._give_up(e)
            raise
        finally:
            self._busy = False
        for done, future in self._waiters:
            if not future.done() and done():
                future.set_result(True)

    async def wait_until(self, done: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until *done*, which is asked after every stimulus. False when that takes too long."""
        if done():
            return True
        waiter = done, asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            return await asyncio.wait_for(waiter[1], timeout_s)
        except TimeoutError:
            return False
        finally:
            self._waiters.remove(waiter)

    async def down(self, progress: Callable[[str, float | None], None]) -> None:
        """End every slot, the zygote and the router; remove our groups, sockets and records.

        A socket that systemd holds goes too: with it the next question would start everything again.
        """
        desk, run = self._desk, self._desk.folders.run
        phases = _Phases(progress)
        phases.begin("end slots")
        self.feed(on.ShutDown())
        await asyncio.wait_for(self._finished.wait(), _DOWN_S)
        await desk.slots.wait_idle()
        phases.begin("end zygote")
        await desk.zygotes.close(stop=True)
        phases.begin("end router")
        desk.folders.snapshot.unlink(missing_ok=True)  # first: systemd starts the next router at once
        desk.control.shut_down_router()
        await desk.control.wait_gone(_DOWN_S)
        phases.begin("clean up")
        desk.room.backend.remove_root()
        # Under systemd the next router may be up already, and its folder is its unit's.
        for name in ("slots", "inits", "records", "zygotes", *([] if is_unit(os.environ) else ["router"])):
            shutil.rmtree(run / name, ignore_errors=True)
        (run / "places.json").unlink(missing_ok=True)
        if self._held is not None:
            phases.begin("let go of the admin socket")
            await call_systemctl("stop", ADMIN_SOCKET)
        phases.end()

    async def _assemble(self, undo: AsyncExitStack) -> Desk:
        config = self._config
        folders = Folders(config.run, config.state)
        router_uid, router_gid = find_router_ids(config)
        find_admin_gid(config)
        make_roots(folders)
        undo.callback(os.close, lock_state(folders))
        undo.callback(os.close, lock_run(folders))
        undo.callback(os.close, lock_uids(config.uid_base))
        make_folders(folders, router_uid, router_gid)
        for folder in (folders.run, folders.records, folders.zygotes):
            remove_unfinished(folder)
        registry = Registry(folders.database)
        undo.callback(registry.close)
        events = Events(folders.database, config.events_kept, now_text)
        undo.callback(events.close)
        artifacts = Artifacts(folders.artifacts)
        artifacts.collect(registry.digests())
        keep_logs(folders.logs, {row.name for row in registry.tenants()})
        units = is_unit(os.environ)
        backend = await find_backend(folders, registry.instance, units=units)
        house = House(
            Limits(
                config.pool_size,
                config.max_slots,
                config.load_timeout_s,
                config.drain_timeout_s,
                config.zygote_forks_max,
                config.residence_s,
                config.devices.warm,
            ),
            lambda: f"s{secrets.token_hex(4)}",
        )
        zygotes = Zygotes(
            folders.zygotes,
            lambda generation, forks: self.feed(on.ZygoteUp(generation, forks)),
            lambda generation, cause: self.feed(on.ZygoteDown(generation, cause)),
            UnitStarter(Generations(folders.zygotes), backend) if units else None,
        )
        room = Room(
            config=config,
            folders=folders,
            backend=backend,
            zygotes=zygotes,
            records=Records(folders.records),
            uids=UidPairs(config.uid_base, config.uid_count),
            router_uid=router_uid,
            now=now_text,
        )
        devices = Devices(
            lambda change: events.add(change.kind, f"{change.device}: {change.text}"),
            unit=folders.nvml_socket if units else None,
            shared=config.devices.shared_cores,
            looked=lambda: usher.look(),  # noqa: PLW0108 - made below
            claims=Claims(),
        )
        undo.push_async_callback(devices.close)
        memory = Holder(devices, backend, lambda slot, text: events.add("memory.unlimited", text, slot=slot))
        operations = Operations()
        slots = Slots(
            room,
            self.feed,
            lambda slot, text: operations.tell(house.slots[slot].operation, text) if slot in house.slots else None,
            RefusedCalls(events, house.tenants).hear,
            lambda live, stats: _hear_of_end(books, devices, live, stats),
            lambda device: usher.find_needs(device),  # noqa: PLW0108 - made below
            lambda record: usher.slot_stuck(record),  # noqa: PLW0108 - so is this
            memory,
        )
        undo.push_async_callback(zygotes.close, stop=False)
        undo.push_async_callback(slots.close)
        control = Control(folders, router_uid, self.feed, events)
        undo.push_async_callback(control.close)
        publisher = Publisher(config, folders, router_gid, registry, house, slots, control.send_snapshot)
        timers = Timers(lambda timer: self.feed(on.TimerFired(timer)))
        undo.callback(timers.stop_all)
        usher = Usher(registry, devices, house, slots, config.devices, self.feed, memory.contexts)
        partitions = Partitions(
            devices,
            read_partitions(config.devices.partitions),
            events.add,
            lambda: list_seats(usher.seating().residents),
            creates_missing=config.devices.create_missing,
        )
        cores = Cores(registry, slots, devices)
        ledger = Ledger(folders.database, lambda: hour_of(datetime.now(UTC)))
        undo.callback(ledger.close)
        books = Books(registry, slots, control, ledger, partial(_list_holdings, usher, slots, backend), self.feed)
        control.hear_usage = books.hear
        self._watcher = Watcher(devices, slots, backend, partial(_tell_over, events), self.feed)
        look = self._look = Look(house, slots, control, self.feed, config.memory_reserve_bytes)
        effects = Effects(
            registry=registry,
            events=events,
            artifacts=artifacts,
            slots=slots,
            zygotes=zygotes,
            operations=operations,
            publisher=publisher,
            timers=timers,
            cores=cores,
            feed=self.feed,
            feed_next=self._feed_next,
            finish=self._finished.set,
            find_room=partial(self._find_room, look),
            wish_of=partial(wish_of, registry),
            doze_s=config.devices.doze_s,
        )
        return Desk(
            config=config,
            folders=folders,
            registry=registry,
            events=events,
            artifacts=artifacts,
            house=house,
            room=room,
            slots=slots,
            zygotes=zygotes,
            operations=operations,
            publisher=publisher,
            control=control,
            effects=effects,
            devices=devices,
            partitions=partitions,
            cores=cores,
            usher=usher,
            books=books,
            feed=self.feed,
            wait_until=self.wait_until,
            down=self.down,
            leave=self._leave.set,
            started_at=time.monotonic(),
        )

    def _find_room(self, look: Look) -> None:
        """Later: the lifecycle is being heard, and is not entered twice."""
        asyncio.get_running_loop().call_soon(look.find_room, "somebody waits, and the box is full")

    async def _recover(self, desk: Desk) -> None:
        await desk.zygotes.find()
        for row in desk.registry.tenants():
            self.feed(wish_of(desk.registry, row))
        desk.usher.look()
        room = desk.room
        recovery = Recovery(
            folders=desk.folders,
            backend=room.backend,
            registry=desk.registry,
            records=room.records,
            events=desk.events,
            uids=room.uids,
            slots=desk.slots,
            cores=desk.cores,
        )
        await recovery.adopt_all(self.feed)
        desk.zygotes.sweep()
        await desk.control.open()

    async def _watch(self, notifier: Notifier) -> None:
        """Tell systemd that we live, out of the loop that does the work, after asking the database."""
        if notifier.watchdog_interval_s is None:
            return
        while True:
            self._desk.registry.digests()
            notifier.tell("WATCHDOG=1")
            await asyncio.sleep(notifier.watchdog_interval_s)

    def _fail(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        """Nobody caught this. A refusal or a failing system call is logged; anything else is a bug."""
        failure = context.get("exception")
        if isinstance(failure, Exception) and not isinstance(failure, BedsitError | OSError):
            self._give_up(failure)
        else:
            loop.default_exception_handler(context)

    def _hear_end(self, task: asyncio.Task[None]) -> None:
        """A task that should run as long as the daemon does has ended: nobody else would notice."""
        failure = None if task.cancelled() else task.exception()
        if isinstance(failure, Exception):
            self._give_up(failure)

    def _give_up(self, failure: Exception) -> None:
        """Leave, and let the next daemon adopt what is there: going on with a broken view would be worse."""
        get_log().critical("daemon.failed", error=str(failure), exc_info=failure)
        self._failure = self._failure or failure
        self._leave.set()


def _hear_of_end(books: Books, devices: Devices, live: LiveSlot, stats: Stats | None) -> None:
    """Nothing runs in a slot any more."""
    books.slot_ended(live, stats)
    devices.unstick(live.record.slot)


def _tell_over(events: Events, tenant: str, slot: str, text: str) -> None:
    events.add("memory.over", text, tenant, slot)


def _list_holdings(usher: Usher, slots: Slots, backend: CgroupBackend) -> Iterable[Holding]:
    """Who has which device now."""
    here = [live.record for live in slots.live.values() if live.record.device and live.record.tenant]
    owners: dict[int, str] = {}
    for record in here:
        with suppress(OSError):  # somebody took its group away
            owners |= dict.fromkeys(backend.procs(record.slot), record.tenant or "")
    return list_holdings(usher.devices.box, usher.seating().residents, owners)


class _Phases:
    """Steps of a long call, each told when it begins and when it ends."""

    def __init__(self, progress: Callable[[str, float | None], None]) -> None:
        self._progress = progress
        self._name = ""
        self._began = 0.0

    def begin(self, name: str) -> None:
        self.end()
        self._name, self._began = name, time.monotonic()
        self._progress(name, None)

    def end(self) -> None:
        if self._name:
            self._progress(self._name, (time.monotonic() - self._began) * 1000)
