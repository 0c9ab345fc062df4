"""The root folder of a slot: read-only, private, with nothing of the box but what Python and torch need to run."""

import os
from typing import Final

from bedsit.sandbox.jail import libc
from bedsit.sandbox.jail.context import WORKER_ID, Context

DEVICES: Final = ("null", "zero", "full", "random", "urandom")
PROC_OPTIONS: Final = "subset=pid,hidepid=invisible"
# The only folders that a worker may write.
SCRATCH: Final = ("/tmp", "/dev/shm", "/bundle")

_QUIET: Final = libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC
_LINKS: Final = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_ROOT_BYTES: Final = 1 << 20
_TMP_INODES: Final = 4096
_BUNDLE_INODES: Final = 65536
_ETC: Final = {
    "passwd": f"worker:x:{WORKER_ID}:{WORKER_ID}::/tmp:/nonexistent\n",
    "group": f"worker:x:{WORKER_ID}:\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    "hosts": "127.0.0.1 localhost slot\n",
}


def make_root(context: Context) -> None:
    """Mount an empty root with an /etc of its own. Refuses to touch the box's own mount tree."""
    root = context.house.staging
    if os.readlink("/proc/self/ns/mnt") == context.house.mount_namespace:
        raise PermissionError("a slot must have its own mount namespace before it gets a root")
    libc.mount("bedsit", root, "tmpfs", libc.MS_NOSUID | libc.MS_NODEV, f"size={_ROOT_BYTES},mode=0755")
    os.mkdir(root + "/etc")
    for name, text in _ETC.items():
        _write(f"{root}/etc/{name}", text)
    if os.path.exists("/etc/ld.so.cache"):
        _write(f"{root}/etc/ld.so.cache")
        _bind_read_only("/etc/ld.so.cache", f"{root}/etc/ld.so.cache")


def bind_devices(context: Context) -> None:
    """The five harmless character devices, as binds: the only mounts in a slot on which a device node works.

    And those of the device that the slot is born for. Binds, because a zygote has no right to make nodes, and because
    what is mounted is then what the box's driver keeps there. Raises ValueError for a node that is another device by
    now than the one that the device program lets through.
    """
    folder = context.house.staging + "/dev"
    os.makedirs(folder, exist_ok=True)
    for name in DEVICES:
        _bind_node(f"/dev/{name}", f"{folder}/{name}")
    for node in context.order.nodes:
        target = f"{folder}/{node.name}"
        os.makedirs(os.path.dirname(target), exist_ok=True)
        _bind_node(node.source, target)
        if not node.is_still(os.stat(target, follow_symlinks=False)):
            raise ValueError(f"{node.source} is not the device {node.major}:{node.minor} any more")


def mount_scratch(context: Context) -> None:
    """What the worker may write: bounded in bytes and files, charged to the slot's memory, never executable."""
    order = context.order
    owner = f"uid={order.worker_uid},gid={order.worker_uid},mode=0700"
    for path, size, inodes in zip(
        SCRATCH,
        (order.tmp_bytes, order.tmp_bytes, order.bundle_bytes),
        (_TMP_INODES, _TMP_INODES, _BUNDLE_INODES),
        strict=True,
    ):
        target = context.house.staging + path
        os.makedirs(target, exist_ok=True)
        libc.mount("bedsit", target, "tmpfs", _QUIET, f"size={size},nr_inodes={inodes},{owner}")


def bind_trees(context: Context) -> None:
    """What the interpreter needs, read-only and where it always was: its own folders and the system's libraries."""
    root = context.house.staging
    for tree in context.house.trees:
        _bind_read_only(tree, root + tree)
    for link in _LINKS:
        if os.path.islink(link):
            os.symlink(os.readlink(link), root + link)
        elif os.path.isdir(link):
            _bind_read_only(link, root + link)


def find_system_folders() -> tuple[str, ...]:
    """The system's library folders that are folders of their own, and not links into /usr."""
    return tuple(link for link in _LINKS if os.path.isdir(link) and not os.path.islink(link))


def bind_slot_folder(context: Context) -> None:
    """The folder in which the router will make this slot's sockets, read-only: connect works there, replace does not.

    The folder and not the sockets, because the router makes them later, and again after a restart.
    """
    _bind_read_only(context.order.run_dir, context.house.staging + "/run/slot")


def mount_proc(context: Context) -> None:
    """The /proc of the slot's pid namespace, without the files about the box, and without other users' processes."""
    target = context.house.staging + "/proc"
    os.makedirs(target, exist_ok=True)
    libc.mount("proc", target, "proc", _QUIET, PROC_OPTIONS)


def pivot(context: Context) -> None:
    """Make the new root the root, and let go of the old one. pivot_root(2), "pivot_root(".", ".")"."""
    os.chdir(context.house.staging)
    libc.pivot_root(".", ".")
    libc.detach(".")
    os.chdir("/")


def seal_root(_: Context) -> None:
    """The root itself becomes read-only."""
    libc.mount("none", "/", None, libc.MS_REMOUNT | libc.MS_BIND | libc.MS_RDONLY | libc.MS_NOSUID | libc.MS_NODEV)


def _bind_read_only(source: str, target: str) -> None:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    libc.mount(source, target, None, libc.MS_BIND | libc.MS_REC)
    libc.make_read_only(target)


def _bind_node(source: str, target: str) -> None:
    _write(target)
    libc.mount(source, target, None, libc.MS_BIND)


def _write(path: str, text: str = "") -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
