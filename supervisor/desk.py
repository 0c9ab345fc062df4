"""What the admin API's handlers work with: all parts of the daemon, and the few things that several nouns need."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from bedsit.supervisor import stimuli as on
from bedsit.supervisor.artifacts import Artifacts
from bedsit.supervisor.books import Books
from bedsit.supervisor.config import Config
from bedsit.supervisor.control import Control
from bedsit.supervisor.cores import Cores
from bedsit.supervisor.devices.partitions.keeper import Partitions
from bedsit.supervisor.devices.watch import Devices
from bedsit.supervisor.effects import Effects
from bedsit.supervisor.events import Events
from bedsit.supervisor.folders import Folders
from bedsit.supervisor.lifecycle import House
from bedsit.supervisor.operations import Operations
from bedsit.supervisor.policy import Policy
from bedsit.supervisor.publisher import Publisher
from bedsit.supervisor.registry import Registry, TenantRow
from bedsit.supervisor.room import Room
from bedsit.supervisor.slots import Slots
from bedsit.supervisor.usher import Usher
from bedsit.supervisor.zygotes import Zygotes

#: How long a change waits for a connected router to work by it.
ACK_S: Final = 2.0


@dataclass
class Desk:
    """The parts of a running daemon."""

    config: Config
    folders: Folders
    registry: Registry
    events: Events
    artifacts: Artifacts
    house: House
    room: Room
    slots: Slots
    zygotes: Zygotes
    operations: Operations
    publisher: Publisher
    control: Control
    effects: Effects
    devices: Devices
    partitions: Partitions
    cores: Cores
    usher: Usher
    books: Books
    feed: Callable[[on.Stimulus], None]
    wait_until: Callable[[Callable[[], bool], float], Awaitable[bool]]
    down: Callable[[Callable[[str, float | None], None]], Awaitable[None]]
    leave: Callable[[], None]
    started_at: float
    #: Digests of archives that are on their way in or wait for their turn.
    incoming: list[str] = field(default_factory=list)
    #: How many want all artifacts kept as they are.
    keepers: int = 0
    #: Changes to one tenant happen one after the other.
    locks: dict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))

    def publish(self) -> None:
        """Tell the router of a change that the lifecycle does not know of."""
        self.effects.publish()

    async def settle(self) -> None:
        """Wait until the router works by what was published last, if one is connected."""
        await self.control.wait_acked(self.publisher.serial, ACK_S)

    def collect_artifacts(self) -> None:
        """Remove the artifacts that neither the registry nor a deployment under way needs; none during a backup."""
        if not self.keepers:
            self.artifacts.collect(self.registry.digests() | set(self.incoming))

    @contextmanager
    def keeping_artifacts(self) -> Iterator[None]:
        """Remove none until the block ends."""
        self.keepers += 1
        try:
            yield
        finally:
            self.keepers -= 1
            self.collect_artifacts()

    def tell_house(self, row: TenantRow) -> None:
        """Say what the operator wants of this tenant now."""
        self.feed(wish_of(self.registry, row))
        self.usher.look()


def wish_of(registry: Registry, row: TenantRow) -> on.TenantSet:
    """A tenant's row as the lifecycle sees it."""
    sizes = {
        (model.number, version.version): version.size
        for model in registry.models(row.number)
        for version in model.versions
        if version.quarantined_at is None
    }
    models, size = tuple(sorted(sizes)), sum(sizes.values())
    policy = Policy(**{name: getattr(row, name) for name in Policy.__dataclass_fields__})
    wanted, strict = row.wanted == "running", row.isolation == "strict"
    return on.TenantSet(row.name, wanted, strict, models, row.profile, policy, size, row.seat)


def now_text() -> str:
    """The time as RFC 3339 text, UTC, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
