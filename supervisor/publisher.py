"""What the router is told: built from the registry and the house, written as a file, sent over the control socket."""

import time
from collections.abc import Callable
from typing import Final

import msgspec

from bedsit.ipc import snapshot as view
from bedsit.ipc.errors import BedsitError, error
from bedsit.supervisor.atomic import write_atomically
from bedsit.supervisor.config import Config
from bedsit.supervisor.folders import Folders
from bedsit.supervisor.lifecycle import House
from bedsit.supervisor.log import get_log
from bedsit.supervisor.registry import ADMISSION, MODEL_ADMISSION, ModelRow, Registry, TenantRow
from bedsit.supervisor.slots import Slots
from bedsit.supervisor.wish import read_wish

#: A deployment that would make the snapshot longer is refused; what is left is for keys, slots and further tenants.
_ROOM: Final = view.MAX_BYTES - (4 << 20)
_STATES: Final = {"loading": "loading", "serving": "serving", "draining": "draining", "dying": "draining"}


class Publisher:
    """Makes snapshots; *send* takes each to the router, if one is there."""

    def __init__(
        self,
        config: Config,
        folders: Folders,
        router_gid: int,
        registry: Registry,
        house: House,
        slots: Slots,
        send: Callable[[int, bytes], None],
    ) -> None:
        self._config = config
        self._folders = folders
        self._router_gid = router_gid
        self._registry = registry
        self._house = house
        self._slots = slots
        self._send = send
        self.serial = self._first_serial()
        self.encoded = b""
        #: Tenants that take nothing new, though they are wanted.
        self.draining: set[str] = set()
        self._unusual: dict[str, view.TenantState] = {}
        self._tenants: dict[int, msgspec.Raw] = {}
        #: What tenants take turns on, by their number.
        self._turns: dict[int, str] = {}
        self._revision = 0

    def publish(self) -> None:
        """Tell the router what is. What cannot be written or sent is logged: the rest of the daemon goes on."""
        self.serial += 1
        tenants = self._encode_tenants()
        self.encoded = view.encode(self._view(), tenants)
        try:
            self._send(self.serial, self.encoded)
            write_atomically(self._folders.snapshot, self.encoded, 0o640, self._router_gid)
        except BedsitError as e:
            get_log().error("snapshot.unpublished", error=str(e))

    def check_room(self, more_bytes: int) -> None:
        """Raises ``snapshot.full`` when *more_bytes* of manifests do not fit any more."""
        if len(self.encoded) + more_bytes > _ROOM:
            hint = "retire old model versions"
            raise error("snapshot.full", "the descriptions of all models of this box take too much room", hint)

    def _view(self) -> view.Snapshot:
        """All but the tenants."""
        return view.Snapshot(
            serial=self.serial,
            instance=self._registry.instance,
            run_dir=str(self._folders.run),
            tenants=[],
            slots=self._slot_views(),
            devices=[*view.gate_box(self._config.parallel), *self._device_views()],
            spin_us=self._config.router_spin_us,
        )

    def _encode_tenants(self) -> list[msgspec.Raw]:
        """Every tenant, read anew only where it has changed: nobody looks up a thousand for the news of one."""
        unusual = self._find_unusual()
        for name in {name for name, _ in unusual.items() ^ self._unusual.items()}:
            self._registry.touch(name)
        self._unusual = unusual
        for number in self._registry.changed_since(self._revision):
            row = self._registry.find_tenant(number)
            if row is None:
                self._tenants.pop(number, None)
                self._turns.pop(number, None)
            else:
                self._tenants[number] = view.encode_tenant(self._tenant(row))
                self._turns[number] = _turns_on(row)
        self._revision = self._registry.revision
        return list(self._tenants.values())

    def _device_views(self) -> list[view.DeviceView]:
        """Everything that somebody takes turns on."""
        settings = self._config.devices
        names = sorted({name for name in self._turns.values() if name})
        return [view.DeviceView(name, turn_ms=settings.turn_ms, hard_ms=settings.hard_ms) for name in names]

    def _tenant(self, row: TenantRow) -> view.TenantView:
        keys = [view.KeyView(key.id, key.digest) for key in self._registry.keys(row.number) if key.revoked_at is None]
        return view.TenantView(
            name=row.name,
            number=row.number,
            state=self._unusual.get(row.name, row.wanted),
            keys=keys,
            arena_bytes=row.arena_bytes,
            max_inflight=row.max_inflight,
            run_max_s=row.run_max_s,
            models=[_model(model) for model in self._registry.models(row.number)],
            turns_on=_turns_on(row),
            **{name: getattr(row, name) for name in ADMISSION} | _weigh(row),
        )

    def _find_unusual(self) -> dict[str, view.TenantState]:
        """Tenants that are not in the state that the registry wants them in."""
        failed = [name for name, tenant in self._house.tenants.items() if tenant.has_failed]
        return {**dict.fromkeys(self.draining, "draining"), **dict.fromkeys(failed, "failed")}

    def _slot_views(self) -> list[view.SlotView]:
        """Every slot that has a tenant, until nothing runs in it: its absence is what confirms its death."""
        views = []
        for slot in self._house.slots.values():
            live = self._slots.live.get(slot.id)
            record = live.record if live else self._slots.ending.get(slot.id)
            if slot.tenant is None or record is None:
                continue
            uid = record.worker_uid
            state = _STATES[slot.state]
            views.append(view.SlotView(slot.id, slot.tenant, state, uid, uid, list(slot.models)))  # type: ignore[arg-type]
        return views

    def _first_serial(self) -> int:
        """Above every serial that this instance used: the last one may have been sent and not written.

        The clock is ahead of them, for nobody publishes every millisecond; where it was set back, the file is.
        """
        clock = time.time_ns() // 1_000_000
        try:
            last = view.decode(self._folders.snapshot.read_bytes())
        except (OSError, BedsitError):
            return clock
        return max(last.serial, clock) if last.instance == self._registry.instance else clock


def _turns_on(row: TenantRow) -> str:
    return row.seat.devices[0] if row.seat is not None and row.seat.is_shared else ""


def _weigh(row: TenantRow) -> dict[str, int]:
    """On what tenants take turns on, each is as heavy as the part of it that it has, in thousandths."""
    request = read_wish(row) if _turns_on(row) else None
    return {"weight": request.share_milli} if request is not None else {}


def _model(row: ModelRow) -> view.ModelView:
    return view.ModelView(
        name=row.name,
        number=row.number,
        default=row.default,
        idempotent=row.idempotent,
        versions=[
            view.VersionView(version.version, version.manifest, version.quarantined_at is not None)
            for version in row.versions
        ],
        **{name: getattr(row, name) for name in MODEL_ADMISSION},
    )
