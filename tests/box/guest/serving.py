"""The units run, the walls stand, and a tenant is served."""

import re

from tests.box.guest.check import PARCEL, ask, bedsit, check, is_full, main_pid, run, wait_until
from tests.box.guest.load import TENANT, Load

#: What README.md of the units promises, as `systemd-analyze security` sees the units that run.
_EXPOSURE = {"bedsit-router.service": 2.0, "bedsitd.service": 3.5, "bedsit-zygote@{}.service": 6.0}


@check("units", within_s=150)
def start() -> str:
    """systemctl start; the zygote is a unit of its own, the slots are in its tree, and the pool fills."""
    run("systemctl", "start", "bedsitd", "bedsit-router")
    wait_until(is_full, "the pool is full", 140)
    zygote = ask("status")["zygote"]
    assert main_pid(f"bedsit-zygote@{zygote['generation']}.service") == zygote["pid"]
    return f"generation {zygote['generation']}"


@check("start")
def doctor() -> None:
    """bedsit doctor finds nothing missing that a sound box has."""
    bedsit("doctor")


@check("start")
def walls() -> str:
    """bedsit status has every wall up, also those that need cgroup v2 or this kernel."""
    bedsit("status")
    walls = ask("status")["walls"]
    off = {name: state for name, state in walls.items() if state != "on"}
    assert walls, "no slot was looked at"
    assert not off, f"off: {off}"
    return f"{len(walls)} on"


@check("start")
def exposure() -> str:
    """systemd-analyze security of the running units stays within what systemd/README.md promises."""
    found = {}
    for template, bound in _EXPOSURE.items():
        unit = template.format(ask("status")["zygote"]["generation"])
        said = run("systemd-analyze", "security", "--no-pager", f"--threshold={bound * 10:.0f}", unit)
        level = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
        assert level is not None, said
        found[unit] = float(level[1])
        assert found[unit] <= bound, f"{unit} has {found[unit]}, bound {bound}"
    return ", ".join(f"{unit.removesuffix('.service')} {level}" for unit, level in found.items())


@check("start")
def tenant() -> str:
    """A tenant with the tiny model, all by the command line; its answers are right."""
    bedsit("tenant", "create", TENANT, "--memory", "512MiB", "--cpus", "1", "--pids", "64")
    bedsit("model", "deploy", TENANT, str(PARCEL / "tiny"))
    with Load() as load:
        load.await_answers(20)
    return f"{load.answered} requests"
