"""The folders on disk: who owns each, which mode, and that only one daemon uses them.

    run/    admin.sock control.sock snapshot.msgpack  router/ slots/ | inits/ records/ zygotes/   (right: root only)
    state/  bedsit.db artifacts/ logs/ lock

Every path is made or checked before anything else happens; what cannot be used is ``folder.unusable``.
"""

import fcntl
import grp
import os
import pwd
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bedsit.ipc.errors import error
from bedsit.supervisor.atomic import disk_error
from bedsit.supervisor.config import Config

ROUTER_USER: Final = "bedsit-router"
ROUTER_UID: Final = 1_899_999_999
_LOCKS: Final = Path("/run/lock")


@dataclass(frozen=True)
class Folders:
    """Where things are."""

    run: Path
    state: Path

    @property
    def admin_socket(self) -> Path:
        """STREAM, the admin API."""
        return self.run / "admin.sock"

    @property
    def nvml_socket(self) -> Path:
        """SEQPACKET, held by systemd: each connection starts a helper that asks NVML. Without systemd there is none."""
        return self.run / "nvml.sock"

    @property
    def control_socket(self) -> Path:
        """STREAM, the router connects here."""
        return self.run / "control.sock"

    @property
    def snapshot(self) -> Path:
        """What the router may know, for a router that starts without a daemon."""
        return self.run / "snapshot.msgpack"

    @property
    def slots(self) -> Path:
        """One folder per slot, bound read-only into its jail."""
        return self.run / "slots"

    @property
    def inits(self) -> Path:
        """One listener per slot: how a daemon finds a slot's init again."""
        return self.run / "inits"

    @property
    def records(self) -> Path:
        """One record per slot: the observed state."""
        return self.run / "records"

    @property
    def zygotes(self) -> Path:
        """One listener and one log per zygote generation."""
        return self.run / "zygotes"

    @property
    def database(self) -> Path:
        """The desired state."""
        return self.state / "bedsit.db"

    @property
    def artifacts(self) -> Path:
        """Immutable files named by their SHA-256."""
        return self.state / "artifacts"

    @property
    def logs(self) -> Path:
        """What tenants print, two bounded files per slot."""
        return self.state / "logs"

    def slot(self, slot: str) -> Path:
        """The folder of one slot."""
        return self.slots / slot

    def init_socket(self, slot: str) -> Path:
        """The listener of one slot's init."""
        return self.inits / f"{slot}.sock"


def find_router_ids(config: Config) -> tuple[int, int]:
    """The router's uid and gid. Raises ``config.invalid`` when the configuration names a user that does not exist."""
    try:
        user = pwd.getpwnam(config.router_user or ROUTER_USER)
    except KeyError:
        if config.router_user:
            raise error("config.invalid", f"router_user: no user {config.router_user!r} on this box") from None
        return ROUTER_UID, ROUTER_UID
    return user.pw_uid, user.pw_gid


def find_admin_gid(config: Config) -> int:
    """The group of the admin socket; 0 when none is configured. Raises ``config.invalid``."""
    if not config.admin_group:
        return 0
    try:
        return grp.getgrnam(config.admin_group).gr_gid
    except KeyError:
        raise error("config.invalid", f"admin_group: no group {config.admin_group!r} on this box") from None


def make_roots(folders: Folders) -> None:
    """Make run and state folder, or set their modes. Raises ``folder.unusable`` or ``disk.full``."""
    for path, mode in ((folders.run, 0o755), (folders.state, 0o750)):
        _make(path, 0, 0, mode)


def make_folders(folders: Folders, router_uid: int, router_gid: int) -> None:
    """Make what is missing in both and set owners and modes; after the locks, because another daemon may use them.

    Raises ``folder.unusable`` or ``disk.full``.
    """
    _make(folders.run / "router", router_uid, router_gid, 0o755)
    _make(folders.slots, 0, 0, 0o755)
    for path in (folders.inits, folders.records, folders.zygotes, folders.artifacts, folders.logs):
        _make(path, 0, 0, 0o700)


def _make(path: Path, uid: int, gid: int, mode: int) -> None:
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        os.chown(path, uid, gid)
        path.chmod(mode)
    except OSError as e:
        raise disk_error(path, e) from e


def lock_state(folders: Folders) -> int:
    """Hold the state folder against a second daemon; gives the descriptor to keep open.

    Raises ``daemon.already_running``.
    """
    return _lock(folders.state / "lock", f"another bedsitd uses {folders.state}")


def lock_run(folders: Folders) -> int:
    """Hold the run folder against a second daemon; gives the descriptor to keep open.

    Raises ``daemon.already_running``.
    """
    return _lock(folders.run / "lock", f"another bedsitd uses {folders.run}")


def lock_uids(uid_base: int, folder: Path = _LOCKS) -> int:
    """Hold the uid range against a second daemon on this box; gives the descriptor to keep open.

    Raises ``daemon.already_running``: two daemons that hand out the same uids would let their tenants meet.
    """
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    return _lock(folder / f"bedsit-uids-{uid_base}.lock", f"another bedsitd hands out the uids from {uid_base}")


def _lock(path: Path, taken: str) -> int:
    with ExitStack() as undo:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as e:
            raise disk_error(path, e) from e
        undo.callback(os.close, fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise error("daemon.already_running", taken, "stop it, or give this one other folders and uids") from None
        undo.pop_all()
        return fd
