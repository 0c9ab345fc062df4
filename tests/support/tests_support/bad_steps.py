"""Steps of the jail that do not do what they should, by the name of the step that they replace, or "step:variant"."""

import errno
import functools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from bedsit.sandbox import init, output
from bedsit.sandbox.jail import descriptors, landlock, libc, root
from bedsit.sandbox.jail.context import Context
from bedsit.sandbox.jail.steps import STEPS

#: What `keep_folder` opened, for a worker that must not have it.
_kept: Final[list[int]] = []


def do_real(name: str, context: Context) -> None:
    """The step as it should be."""
    next(step for step in STEPS if step.name == name).run(context)


def bind_all_devices(context: Context) -> None:
    """The box's whole /dev."""
    folder = context.house.staging + "/dev"
    Path(folder).mkdir(parents=True)
    libc.mount("/dev", folder, None, libc.MS_BIND | libc.MS_REC)


def bind_one_device(context: Context) -> None:
    """The right devices, and one of the box's: the node that the test made in the house."""
    root.bind_devices(context)
    target = context.house.staging + "/dev/other"
    Path(target).touch()
    libc.mount(str(Path(context.house.staging).parent / "node"), target, None, libc.MS_BIND)


def bind_other_nodes(context: Context) -> None:
    """The right devices, and all others that the test made in the house, under their own names."""
    root.bind_devices(context)
    box = Path(context.house.staging).parent / "dev"
    for node in sorted(path for path in box.rglob("*") if path.is_char_device()):
        target = Path(context.house.staging, "dev", node.relative_to(box))
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            target.touch()
            libc.mount(str(node), str(target), None, libc.MS_BIND)


def mount_whole_proc(context: Context) -> None:
    """A /proc that shows everybody."""
    folder = context.house.staging + "/proc"
    Path(folder).mkdir(parents=True)
    libc.mount("proc", folder, "proc", libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC)


def mount_endless_scratch(context: Context) -> None:
    """Scratch folders without a bound of their own."""
    _remount_scratch(context, libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC, "size=0,nr_inodes=0")


def mount_powerful_scratch(context: Context) -> None:
    """Scratch folders in which programs run, set-uid bits count and device nodes work."""
    _remount_scratch(context, 0, f"size={context.order.tmp_bytes}")


def _remount_scratch(context: Context, flags: int, options: str) -> None:
    uid = context.order.worker_uid
    for path in root.SCRATCH:
        target = context.house.staging + path
        os.makedirs(target, exist_ok=True)
        libc.mount("bedsit", target, "tmpfs", flags, f"{options},uid={uid},gid={uid},mode=0700")


def bind_writable_trees(context: Context) -> None:
    """The right trees, but writable."""
    root.bind_trees(context)
    for tree in context.house.trees:
        _make_writable(context.house.staging + tree)


def bind_writable_slot_folder(context: Context) -> None:
    """The right folder, but writable."""
    root.bind_slot_folder(context)
    _make_writable(context.house.staging + "/run/slot")


def _make_writable(target: str) -> None:
    libc.mount("none", target, None, libc.MS_REMOUNT | libc.MS_BIND | libc.MS_NOSUID | libc.MS_NODEV)


def keep_the_box(context: Context) -> None:
    """The new root, with the whole box below /box."""
    folder = context.house.staging + "/box"
    Path(folder).mkdir()
    libc.mount("/", folder, None, libc.MS_BIND | libc.MS_REC)
    root.pivot(context)


def keep_all_descriptors(_: Context) -> None:
    """A folder of the box stays open."""
    os.set_inheritable(os.open("/", os.O_RDONLY), True)


def keep_folder(context: Context) -> None:
    """All is closed but a folder of the box, which the worker will have too."""
    descriptors.close_descriptors(context)
    _kept.append(os.open("/", os.O_RDONLY | os.O_DIRECTORY))
    close = descriptors._close_all_but

    def close_the_others(keep: Iterable[int]) -> None:
        close({*keep, *_kept})

    descriptors._close_all_but = close_the_others  # in this slot's processes only


def fork_leaky_worker(context: Context) -> None:
    """The real fork, then a worker that has one descriptor too many."""
    do_real("fork_worker", context)
    if context.role == "worker":
        os.dup(1)


def reap_nobody(context: Context) -> None:
    """An init that buries its worker and no orphan."""
    do_real("no_trace", context)
    worker = context.worker_pid

    def reap(self: init._Init) -> None:
        if worker and os.waitpid(worker, os.WNOHANG)[0]:
            os._exit(0)

    init._Init._reap = reap  # type: ignore[method-assign]  # in this slot's init only


def restrict_like_a_kernel_with(abi: int, context: Context) -> None:
    """Landlock, by the rules of an older kernel; 0 has none."""

    def find_abi() -> int:
        if not abi:
            raise OSError(errno.ENOSYS, "landlock_create_ruleset: there is no such call")
        return abi

    landlock.restrict(context, find_abi)


def keep_raw_logs(context: Context) -> None:
    """An init that writes what its worker prints as it is."""
    do_real("no_trace", context)
    output.printable = lambda raw: raw.decode("latin-1")  # in this slot's init only


def bury_for_ever(context: Context) -> None:
    """An init that listens to its worker's children for as long as they talk."""
    do_real("no_trace", context)

    def bury(self: init._Init, status: int) -> None:
        while self._on_control():
            pass
        self._status = status

    init._Init._bury = bury  # type: ignore[method-assign]  # in this slot's init only


def keep_endless_lines(context: Context) -> None:
    """An init that keeps a line until it ends, however long it becomes."""
    do_real("no_trace", context)
    output.MAX_LINE = 1 << 40  # type: ignore[misc]  # in this slot's init only


BAD: Final = {
    **{f"landlock:{abi}": functools.partial(restrict_like_a_kernel_with, abi) for abi in range(8)},
    "close_descriptors": keep_all_descriptors,
    "close_descriptors:folder": keep_folder,
    "devices": bind_all_devices,
    "devices:one": bind_one_device,
    "devices:others": bind_other_nodes,
    "fork_worker": fork_leaky_worker,
    "no_trace:endless_lines": keep_endless_lines,
    "no_trace:no_reaping": reap_nobody,
    "no_trace:patient": bury_for_ever,
    "no_trace:raw_logs": keep_raw_logs,
    "pivot:box_kept": keep_the_box,
    "proc": mount_whole_proc,
    "scratch:endless": mount_endless_scratch,
    "scratch:powerful": mount_powerful_scratch,
    "slot_folder:writable": bind_writable_slot_folder,
    "trees:writable": bind_writable_trees,
}
