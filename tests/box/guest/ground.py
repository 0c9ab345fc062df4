"""What bedsit stands on moves while a client asks: the clock, the disk, systemd itself. Nothing of ours ends by it."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.box.guest.check import PARCEL, ask, bedsit, check, events, is_full, main_pid, run, wait_until
from tests.box.guest.load import TENANT, Load

_HOUR_S = 3600
_STATE = Path("/var/lib/bedsit")
_DISK_BYTES = 96 << 20
_DELAY_MS = 100


def _processes() -> dict[str, int]:
    """Everything that must be the same process afterwards."""
    zygote = wait_until(lambda: ask("status")["zygote"]["generation"], "the zygote is up")
    units = ("bedsitd.service", "bedsit-router.service", f"bedsit-zygote@{zygote}.service")
    return {"worker": ask("tenant.show", name=TENANT)["worker_pid"], **{unit: main_pid(unit) for unit in units}}


@check("tenant")
def clock_jumps() -> str:
    """An hour forward, two back, one forward: nobody is late, idle or dead by it, and events keep their order."""
    before, since = _processes(), len(events("daemon.started"))
    with Load() as load:
        for hours in (1, -2, 1):
            time.clock_settime(time.CLOCK_REALTIME, time.time() + hours * _HOUR_S)
            ask("key.create", tenant=TENANT)  # something that the daemon writes down with the time
            load.await_answers(20)
        answered = load.answered
    assert _processes() == before
    assert len(events("daemon.started")) == since
    made = events("key.created")[-3:]
    assert [event["id"] for event in made] == sorted(event["id"] for event in made)
    assert made[0]["at"] > made[2]["at"] > made[1]["at"], made
    return f"{answered} requests"


@check("tenant")
def daemon_reexec() -> str:
    """systemctl daemon-reexec: systemd starts itself again, and nothing of ours."""
    before = _processes()
    with Load() as load:
        run("systemctl", "daemon-reexec")
        load.await_answers(20)
        answered = load.answered
    assert _processes() == before
    assert is_full()
    return f"{answered} requests"


@check("tenant", within_s=180)
def slow_disk() -> str:
    """A disk that takes a tenth of a second for each access: a tenant comes slowly, another one is served as before."""
    before = _processes()
    with Load() as load, _disk_below_state() as slow_down:
        of_disk = main_pid("bedsitd.service")
        slow_down(_DELAY_MS)
        began, answered = time.monotonic(), load.answered
        ask("tenant.create", name="slow")
        bedsit("model", "deploy", "slow", str(PARCEL / "tiny"))
        took, meanwhile = time.monotonic() - began, load.answered - answered
        ask("tenant.delete", name="slow")
        slow_down(0)
        assert main_pid("bedsitd.service") == of_disk, "the watchdog has bitten"
        assert meanwhile > 20, f"only {meanwhile} answers in {took:.1f} s"
    after = _processes()
    assert {**after, "bedsitd.service": 0} == {**before, "bedsitd.service": 0}
    return f"{meanwhile} requests in {took:.1f} s, the slowest {load.slowest_s * 1000:.0f} ms"


@contextmanager
def _disk_below_state() -> Iterator[Callable[[int], None]]:
    """The state folder on a disk of its own meanwhile; call what is given to have each access take so many ms.

    The daemon has to let go of the folder for it. Its tenants do not notice.
    """
    file = Path("/run/slow.img")
    with file.open("wb") as disk:
        disk.truncate(_DISK_BYTES)
    loop = run("losetup", "--find", "--show", file).strip()

    def table(delay_ms: int) -> str:
        return f"0 {_DISK_BYTES // 512} delay {loop} 0 {delay_ms}"

    def slow_down(delay_ms: int) -> None:
        run("dmsetup", "suspend", "slow")
        run("dmsetup", "reload", "slow", "--table", table(delay_ms))
        run("dmsetup", "resume", "slow")

    run("modprobe", "dm-delay")
    run("dmsetup", "create", "slow", "--table", table(0))
    run("mkfs.ext4", "-q", "/dev/mapper/slow")
    _move_state(lambda: run("mount", "/dev/mapper/slow", _STATE))
    try:
        yield slow_down
    finally:
        _move_state(lambda: run("umount", "--lazy", _STATE))
        # Whoever has it open in a name space of its own keeps it until then.
        run("dmsetup", "remove", "--deferred", "slow")


def _move_state(change: Callable[[], object]) -> None:
    """Stop the daemon, change what lies below the state folder, put its content there, start the daemon again."""
    with tempfile.TemporaryDirectory(dir="/run") as folder:
        run("systemctl", "stop", "bedsitd")
        run("cp", "--archive", f"{_STATE}/.", folder)
        change()
        # Files of their own: workers have mapped those that were there.
        run("cp", "--archive", "--remove-destination", f"{folder}/.", _STATE)
        run("systemctl", "start", "bedsitd")
    wait_until(is_full, "all is up again")
