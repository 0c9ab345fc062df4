"""Blank slots one after the other, made by the daemon's own code with no daemon around it; the floor beside them.

Beside each slot one of the straight line is made (`bench.straight`), in a group of the same kind with the same limits.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from bedsit.sandbox.cgroup import detect
from bedsit.supervisor import stimuli as on
from bedsit.supervisor.config import Config, load_config
from bedsit.supervisor.desk import now_text
from bedsit.supervisor.folders import Folders, find_router_ids, make_folders
from bedsit.supervisor.records import Records
from bedsit.supervisor.room import Room
from bedsit.supervisor.slots import Slots
from bedsit.supervisor.uids import UidPairs
from bedsit.supervisor.zygotes import Zygotes
from bench.line import Line, Made

_DEADLINE_S: Final = 60.0


class Birth(NamedTuple):
    """How long one slot took, in milliseconds, and a slot of the straight line beside it.

    *ready_ms* is the daemon's view, from the uid pair to the commit; *steps_ms* are the zygote's, whose "total" is the
    span that the straight line has, fork to ready. *outside* is a straight line outside of every group.
    """

    ready_ms: float
    steps_ms: dict[str, float]
    straight: Made
    outside: Made


class _TimedZygotes(Zygotes):
    """Keeps what the zygote says about each spawn."""

    steps_ms: dict[str, float]

    async def spawn(self, request: Mapping[str, Any], fds: Sequence[int]) -> dict[str, Any]:
        reply = await super().spawn(request, fds)
        self.steps_ms = reply["steps_ms"]
        return reply


def measure_births(config_file: Path, folder: Path, count: int) -> list[Birth]:
    """Make and destroy *count* slots below *folder* with a zygote of their own; the first, cold one does not count.

    From the uid pair to the commit: cgroup, fork, jail, the check from outside, the record. Raises RuntimeError.
    """
    places = {"run_dir": str(folder / "run"), "state_dir": str(folder / "state")}
    return asyncio.run(_measure(load_config(config_file, places), count))


async def _measure(config: Config, count: int) -> list[Birth]:
    heard: asyncio.Queue[object] = asyncio.Queue()
    folders = Folders(config.run, config.state)
    router_uid, router_gid = find_router_ids(config)
    make_folders(folders, router_uid, router_gid)
    backend = detect(f"births-{folders.run.parent.name}")
    zygotes = _TimedZygotes(
        folders.zygotes, lambda generation, _: heard.put_nowait(generation), lambda _, why: heard.put_nowait(why)
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
    slots = Slots(room, heard.put_nowait, lambda _slot, _text: None)
    line = Line(backend, folders.run / "straight", config.uid_base + config.uid_count)
    try:
        zygotes.start()
        await _expect(heard, int)
        births = [await _make_round(slots, zygotes, heard, line, number) for number in range(count + 1)]
    finally:
        line.close()
        await slots.close()
        await zygotes.close(stop=True)
        backend.remove_root()
    return births[1:]


async def _make_round(
    slots: Slots, zygotes: _TimedZygotes, heard: "asyncio.Queue[object]", line: Line, number: int
) -> Birth:
    """One of each; who comes first changes from round to round, since the end of one slot still slows the next down."""
    slot, ready_ms, made = f"s{number:08x}", 0.0, {}
    for turn in range(3):
        kind = (turn + number) % 3
        if kind == 0:
            ready_ms = await _make_one(slots, heard, slot)
        else:
            made[kind] = await line.make_one(slot, into_group=kind == 1)
    return Birth(ready_ms, zygotes.steps_ms, made[1], made[2])


async def _make_one(slots: Slots, heard: "asyncio.Queue[object]", slot: str) -> float:
    began = time.perf_counter()
    slots.build(slot)
    await _expect(heard, on.SlotBuilt)
    ready_ms = (time.perf_counter() - began) * 1e3
    slots.destroy(slot)
    await _expect(heard, on.SlotGone)
    await slots.wait_idle()
    return ready_ms


async def _expect(heard: "asyncio.Queue[object]", wanted: type) -> None:
    """Wait for the next stimulus of that kind. Raises RuntimeError when something failed first."""
    async with asyncio.timeout(_DEADLINE_S):
        while not isinstance(said := await heard.get(), wanted):
            match said:
                case str(why) | on.SlotRefused(why=why):
                    raise RuntimeError(why)
