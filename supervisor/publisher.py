"""What the router is told: built from the registry and the house, written as a file, sent over the control socket."""

import time
from collections.abc import Callable
from typing import Final

from bedsit.ipc import snapshot as view
from bedsit.ipc.errors import BedsitError, error
from bedsit.ipc.frames import MAX_FRAME
from bedsit.supervisor.atomic import write_atomically
from bedsit.supervisor.folders import Folders
from bedsit.supervisor.lifecycle import House
from bedsit.supervisor.log import get_log
from bedsit.supervisor.registry import ModelRow, Registry, TenantRow
from bedsit.supervisor.slots import Slots

#: A snapshot travels as one frame; a deployment that would make it longer is refused.
MAX_SNAPSHOT: Final = MAX_FRAME - (64 << 10)
_STATES: Final = {"loading": "loading", "serving": "serving", "draining": "draining", "dying": "draining"}


class Publisher:
    """Makes snapshots; *send* takes each to the router, if one is there."""

    def __init__(
        self,
        folders: Folders,
        router_gid: int,
        registry: Registry,
        house: House,
        slots: Slots,
        send: Callable[[int, bytes], None],
    ) -> None:
        self._folders = folders
        self._router_gid = router_gid
        self._registry = registry
        self._house = house
        self._slots = slots
        self._send = send
        self.serial = self._first_serial()
        self.encoded = b""

    def publish(self) -> None:
        """Tell the router what is. What cannot be written or sent is logged: the rest of the daemon goes on."""
        self.serial += 1
        self.encoded = view.encode(self._view())
        try:
            self._send(self.serial, self.encoded)
            write_atomically(self._folders.snapshot, self.encoded, 0o640, self._router_gid)
        except BedsitError as e:
            get_log().error("snapshot.unpublished", error=str(e))

    def check_room(self, more_bytes: int) -> None:
        """Raises ``snapshot.full`` when *more_bytes* of manifests do not fit any more."""
        if len(self.encoded) + more_bytes > MAX_SNAPSHOT:
            hint = "retire old model versions"
            raise error("snapshot.full", "the descriptions of all models of this box take too much room", hint)

    def _view(self) -> view.Snapshot:
        return view.Snapshot(
            serial=self.serial,
            instance=self._registry.instance,
            run_dir=str(self._folders.run),
            tenants=[self._tenant(row) for row in self._registry.tenants()],
            slots=self._slot_views(),
        )

    def _tenant(self, row: TenantRow) -> view.TenantView:
        keys = [view.KeyView(key.id, key.digest) for key in self._registry.keys(row.number) if key.revoked_at is None]
        return view.TenantView(
            name=row.name,
            number=row.number,
            state=row.wanted,
            keys=keys,
            arena_bytes=row.arena_bytes,
            queue_max=row.queue_max,
            max_inflight=row.max_inflight,
            sessions_max=row.sessions_max,
            models=[_model(model) for model in self._registry.models(row.number)],
        )

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
        """Above every serial that this instance used: the last one written, or the clock where that is lost."""
        try:
            last = view.decode(self._folders.snapshot.read_bytes())
        except (OSError, BedsitError):
            return time.time_ns() // 1_000_000
        return last.serial if last.instance == self._registry.instance else time.time_ns() // 1_000_000


def _model(row: ModelRow) -> view.ModelView:
    versions = [view.VersionView(version.version, version.manifest) for version in row.versions]
    return view.ModelView(row.name, row.number, row.default, row.idempotent, versions)
