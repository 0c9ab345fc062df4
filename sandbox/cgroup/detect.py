"""Find the cgroup hierarchies of this box and the place in each that is ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from bedsit.ipc.errors import error
from bedsit.sandbox.cgroup import v1, v2
from bedsit.sandbox.cgroup.backend import CgroupBackend, naming
from bedsit.sandbox.cgroup.devices import DeviceProgram, NoProgram, load_program
from bedsit.sandbox.cgroup.lifecycle import Lifecycle

UNIFIED: Final = "unified"


def detect(
    name: str,
    places: Mapping[str, str] | None = None,
    *,
    units: bool = False,
    devices: DeviceProgram | NoProgram | None = None,
) -> CgroupBackend:
    """The backend for the slots of the daemon called *name*; makes its roots.

    A root is ``<own group of this process>/bedsit-<name>`` in every hierarchy, never the top of one unless that is
    where this process was put. A daemon that adopts an earlier one's slots passes that one's `places`: it may itself
    have been started in another group. With *units* the root in cgroup2 is not made: every zygote generation has a
    unit, and brings a group of its own (`CgroupBackend.use`). *devices* stands in for the standard program.

    Raises ``cgroup.refused``.
    """
    own = find_own_groups()
    if places is None:
        if UNIFIED in own and not units:
            own[UNIFIED] = v2.step_out(own[UNIFIED])
        places = {controller: str(group / f"bedsit-{name}") for controller, group in own.items()}
    if UNIFIED not in places:
        raise error("cgroup.refused", "no cgroup2 hierarchy is mounted", "mount -t cgroup2 none /sys/fs/cgroup/unified")
    roots = {controller: Path(place) for controller, place in places.items()}
    home = roots.pop(UNIFIED)
    lifecycle = Lifecycle(*([] if units and not home.is_dir() else [home]), devices=devices or load_program())
    # The group of a unit gets its controllers with its first sibling that has them: look at the top instead.
    if v2.has_controllers(v2.find_top(home.parent) if units else home.parent):
        if not units:
            v2.prepare(home.parent, home)
        return v2.V2Backend(places, lifecycle)
    lacking = [controller for controller in v1.CONTROLLERS if controller not in roots]
    if lacking:
        raise error("cgroup.refused", f"no hierarchy has the controllers {', '.join(lacking)}")
    for root in [*roots.values(), *lifecycle.roots]:
        with naming(root):
            root.mkdir(exist_ok=True)
    if "cpuset" in roots:
        v1.inherit_cores(roots["cpuset"])
    return v1.V1Backend(places, lifecycle)


def find_own_groups(pid: str = "self") -> dict[str, Path]:
    """The folder of a process's group, by v1 controller, and under "unified" for cgroup2.

    Two controllers in one hierarchy give the same folder twice. Sources: cgroups(7), proc_pid_mountinfo(5).
    """
    paths: dict[str, str] = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(",") if controllers else [UNIFIED]:
            paths[controller] = path
    found: dict[str, Path] = {}
    for mount_root, mount_point, held in _mounts():
        for controller in held:
            path = paths.get(controller, "")
            if controller not in found and path.startswith(mount_root):
                found[controller] = Path(mount_point) / path[len(mount_root) :].lstrip("/")
    return {
        name: folder
        for name, folder in found.items()
        if folder.is_dir() and name in (*v1.CONTROLLERS, *v1.OPTIONAL, UNIFIED)
    }


def _mounts() -> list[tuple[str, str, list[str]]]:
    mounts = []
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        fields, rest = line.split(" - ", 1)
        kind, _, options = rest.split(" ", 2)
        if kind in ("cgroup", "cgroup2"):
            _, _, _, root, point = fields.split(" ")[:5]
            mounts.append((root, point, options.split(",") if kind == "cgroup" else [UNIFIED]))
    return mounts
