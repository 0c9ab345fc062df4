"""Cores that tenants take turns on: each set of them is a device, under the name that its operator gave it. Pure."""

import re
from collections.abc import Iterator, Mapping
from typing import Final

from bedsit.sandbox.cgroup.cores import format_cores, parse_cores
from bedsit.supervisor.devices.model import Slice, Trouble

_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,30}")
#: What other devices are called.
_TAKEN: Final = re.compile(r"(cpu|gpu|mig|core)[0-9]*(-.*)?")


def check_shared(shared: Mapping[str, str], usable: frozenset[int]) -> None:
    """Raises ValueError, which begins with the name, for what cannot be a device beside the others of this box."""
    owners: dict[int, str] = {}
    for name, text in shared.items():
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name: a-z first, then a-z 0-9 and -, at most 31 characters")
        if _TAKEN.fullmatch(name):
            raise ValueError(f"{name} is what other devices are called: choose another name")
        try:
            cores = parse_cores(text)
        except ValueError as e:
            raise ValueError(f"{name}: {e}") from None
        missing = cores - usable
        if missing:
            raise ValueError(f"{name}: {_say(missing)} not there, or not for bedsit; it has {format_cores(usable)}")
        twice = sorted(cores & owners.keys())
        if twice:
            raise ValueError(f"{name}: {_say(frozenset(twice))} shared as {owners[twice[0]]} already")
        owners |= dict.fromkeys(cores, name)
    if shared and not usable - owners.keys():
        raise ValueError(f"{' and '.join(shared)} leave no core to tenants without a device")


def list_shared(shared: Mapping[str, str], usable: frozenset[int]) -> Iterator[Slice]:
    """The devices. One of which a core is not *usable* now (it was taken offline) is in trouble."""
    for name, text in shared.items():
        cores = parse_cores(text)
        missing = cores - usable
        yield Slice(
            id=name,
            kind="timeslice",
            name=f"{len(cores)} core{'s' * (len(cores) > 1)} in turn",
            memory_bytes=0,
            fault_domain="box",
            cores=tuple(sorted(cores)),
            trouble=Trouble(f"{_say(missing)} offline", "bring it back (/sys/devices/system/cpu)") if missing else None,
        )


def _say(cores: frozenset[int]) -> str:
    return f"core{'s' * (len(cores) > 1)} {format_cores(cores)} {'are' if len(cores) > 1 else 'is'}"
