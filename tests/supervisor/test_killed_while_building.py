"""Kill -9 of the zygote and of the daemon while a slot is half built: the survivor, or the next one, cleans up."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytestmark = pytest.mark.root


class HalfBuilt(NamedTuple):
    """A slot whose first process was born and has not run one instruction yet, and its zygote."""

    slot: str
    group: Path
    pid: int
    zygote: int


def find_slots_folder(box: Any) -> Path:
    """The cgroup2 folder in which this box makes its slots."""
    (found,) = [path for path in box.groups() if (path / "cgroup.events").exists()]
    return Path(found)


def start_building(box: Any) -> HalfBuilt:
    """Make the daemon build a slot, and freeze that at its birth: who is born into a frozen group does not run."""
    folder, (blank,) = find_slots_folder(box), box.ps(state="blank")
    zygote = box.call("status")["zygote"]["pid"]
    os.kill(zygote, signal.SIGSTOP)
    os.kill(blank["init_pid"], signal.SIGKILL)
    box.wait(lambda: [row["slot"] for row in box.ps(state="building")])
    (row,) = box.ps(state="building")
    group = folder / row["slot"]
    box.wait(group.exists)
    (group / "cgroup.freeze").write_text("1")
    os.kill(zygote, signal.SIGCONT)
    box.wait(lambda: (group / "cgroup.procs").read_text().split())
    return HalfBuilt(row["slot"], group, int((group / "cgroup.procs").read_text()), zygote)


def find_traces(box: Any, slot: str) -> list[str]:
    """What there is of a slot: groups in any hierarchy, folder, socket, record."""
    groups = [str(path / slot) for path in box.groups() if (path / slot).exists()]
    files = [str(path) for path in box.run.rglob("*") if slot in path.name]
    return groups + files


def test_the_zygote_is_killed(new_box: Callable[[], Any]) -> None:
    """The daemon ends the half-built slot, gives its ids to another one, and goes on with generation 2."""
    box = new_box()
    box.settings |= {"max_slots": 3, "uid_count": 6}
    box.start()
    half = start_building(box)
    os.kill(half.zygote, signal.SIGKILL)

    box.wait(lambda: not find_traces(box, half.slot))
    box.wait(lambda: not Path(f"/proc/{half.pid}").exists())
    box.wait(lambda: box.pool() >= 1)
    (row,) = box.ps(state="blank")
    assert row["generation"] == box.call("status")["zygote"]["generation"] == 2
    (refused,) = box.events("slot.refused")
    assert refused["slot"] == half.slot
    assert "went away" in refused["text"]
    for _ in range(3):  # there are three pairs of ids: after three more slots each has been used again
        (blank,) = box.ps(state="blank")
        os.kill(blank["init_pid"], signal.SIGKILL)
        box.wait_event("slot.destroyed", slot=blank["slot"])
        box.wait(lambda: box.pool() >= 1)


def test_the_daemon_is_killed(box: Any) -> None:
    """The slot is finished when it thaws, finds nobody and ends; the next daemon removes what the files are."""
    half = start_building(box)
    box.kill_daemon()
    (half.group / "cgroup.freeze").write_text("0")
    box.wait(lambda: not Path(f"/proc/{half.pid}").exists())
    box.start()

    assert find_traces(box, half.slot) == []
    assert box.call("status")["zygote"]["pid"] == half.zygote
    assert [event["text"] for event in box.events("slot.destroyed") if event["slot"] == half.slot] == [
        "not adopted: no record names it"
    ]


def test_both_are_killed_while_it_is_frozen(box: Any) -> None:
    """Nobody is left who knows of it, and it cannot run to its end: the next daemon ends it nevertheless."""
    half = start_building(box)
    box.kill_daemon()
    os.kill(half.zygote, signal.SIGKILL)
    box.start()

    box.wait(lambda: not Path(f"/proc/{half.pid}").exists())
    assert find_traces(box, half.slot) == []
