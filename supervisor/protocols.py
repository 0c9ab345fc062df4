"""Every format that two versions of bedsit may meet each other in, and which one this version speaks."""

from collections.abc import Mapping
from typing import Final

from bedsit.ipc import admin, door, snapshot, wire
from bedsit.supervisor import records, slots, zygote

#: admin: command line and daemon. door, wire: programs and router; wire also router and worker. snapshot: daemon and
#: router. record, slot: a daemon and the slots that an earlier one left. zygote: daemon and zygote.
PROTOCOLS: Final[Mapping[str, int]] = {
    "admin": admin.VERSION,
    "door": door.PROTOCOL,
    "record": records.VERSION,
    "slot": slots.PROTOCOL,
    "snapshot": snapshot.VERSION,
    "wire": wire.VERSION,
    "zygote": zygote.PROTOCOL,
}
