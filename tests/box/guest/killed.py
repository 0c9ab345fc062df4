"""What operators do to units while a client asks: no request fails, and no worker is lost."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

from tests.box.guest.check import ask, check, events, group_of, is_full, main_pid, run, wait_until
from tests.box.guest.load import TENANT, Load

_LIMITS = ("memory.max", "pids.max", "cpu.max")


def _worker() -> int:
    pid = ask("tenant.show", name=TENANT)["worker_pid"]
    assert isinstance(pid, int)
    return pid


def _replace(unit: str, end: Callable[[], object]) -> str:
    """Have a unit's process replaced under load; its tenant's worker stays."""
    worker, before = _worker(), main_pid(unit)
    with Load() as load:
        end()
        wait_until(lambda: main_pid(unit) not in (0, before), f"{unit} has another process")
        wait_until(is_full, "all is up again")
        answered = load.answered
    assert _worker() == worker, "the worker is another one"
    return f"{answered} requests"


def _kill(unit: str) -> None:
    os.kill(main_pid(unit), signal.SIGKILL)


@check("tenant")
def daemon_restarted() -> str:
    """systemctl restart bedsitd: the next daemon adopts all slots."""
    before = len(events("slot.adopted"))
    said = _replace("bedsitd.service", lambda: run("systemctl", "restart", "bedsitd"))
    adopted = events("slot.adopted")[before:]
    assert TENANT in {event["tenant"] for event in adopted}, adopted
    return said


@check("tenant")
def daemon_killed() -> str:
    """kill -9 of the daemon: systemd starts the next one."""
    return _replace("bedsitd.service", lambda: _kill("bedsitd.service"))


@check("tenant")
def router_restarted() -> str:
    """systemctl restart bedsit-router: the client connects again by itself, and its caller sees no error."""
    return _replace("bedsit-router.service", lambda: run("systemctl", "restart", "bedsit-router"))


@check("tenant")
def router_killed() -> str:
    """kill -9 of the router: the same."""
    return _replace("bedsit-router.service", lambda: _kill("bedsit-router.service"))


@check("tenant")
def daemon_reload() -> None:
    """systemctl daemon-reload: systemd forgets neither the limits nor the processes of what it does not know."""
    worker = _worker()
    group = group_of(worker)
    before = {name: (group / name).read_text() for name in _LIMITS}
    with Load():
        run("systemctl", "daemon-reload")
    assert {name: (group / name).read_text() for name in _LIMITS} == before
    assert (_worker(), group_of(worker)) == (worker, group)


@check("tenant", within_s=150)
def zygote_killed() -> str:
    """kill -9 of the zygote: slots live on under their limits; the next generation is a unit of its own."""
    worker, before = _worker(), ask("status")["zygote"]["generation"]
    old = f"bedsit-zygote@{before}.service"
    group = group_of(worker)
    with Load() as load:
        _kill(old)
        wait_until(lambda: (ask("status")["zygote"]["generation"] or 0) > before, "the next generation", 140)
        wait_until(is_full, "the pool is full", 60)
        answered = load.answered
    after = ask("status")["zygote"]
    assert main_pid(f"bedsit-zygote@{after['generation']}.service") == after["pid"]
    assert (_worker(), group_of(worker)) == (worker, group), "the worker is another one"
    assert (group / "memory.max").read_text() != "max\n"
    assert Path(f"/proc/{worker}").exists()
    return f"generation {after['generation']}, {answered} requests"
