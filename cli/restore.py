"""``bedsit restore``: a new state folder out of a backup."""

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Annotated, BinaryIO, Final

import typer

from bedsit.cli.archive import ARTIFACTS, DATABASE, read_archive
from bedsit.cli.backup import describe, disk_failure, sync_folder
from bedsit.cli.box import Box
from bedsit.cli.command import make_app, verb
from bedsit.ipc.errors import error

app = make_app()

_LOCK: Final = "lock"
#: What may be in a folder that counts as empty: a daemon's lock that nobody holds, and what file systems come with.
_NOTHING: Final = frozenset({_LOCK, "lost+found"})


@verb(app, "restore", examples="bedsit restore box.tar --state-dir /var/lib/bedsit")
def restore(
    box: Box,
    file: Annotated[Path, typer.Argument(readable=False, metavar="FILE", help="A tar that bedsit backup wrote.")],
    *,
    state_dir: Annotated[
        Path, typer.Option(readable=False, metavar="DIR", help="The state folder to make; new, or empty.")
    ],
) -> None:
    """Make a state folder out of a backup; the daemon that is started on it has the tenants, keys and models again.

    Every digest is checked before anything gets its place. A folder that is not empty, or that a daemon uses, is left
    alone; so is one when anything fails. Two boxes on one machine must not be made from one backup.
    """
    with _open(file) as source, _new_folder(state_dir) as stage:
        about = read_archive(source, stage)
    record = {"file": str(file), "state_dir": str(state_dir), **about._asdict()}
    box.screen.show_record("backup", record, [*describe(about, file), ("restored to", state_dir)], str(state_dir))
    box.screen.next(f"bedsit up --state-dir {state_dir}")


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as e:
        raise error("input.invalid", f"cannot read {path}: {e.strerror}", "name a file of bedsit backup") from None


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """A folder to unpack into, whose files get their places in *path* when the block ends well, the database last.

    Without it a daemon takes the folder for an empty one. *path* is locked meanwhile, and is as it was when it fails.
    Raises ``folder.unusable`` where there is something in it, ``daemon.already_running`` where a daemon holds it.
    """
    with ExitStack() as done, ExitStack() as undo:
        try:
            if not path.exists():
                path.mkdir(mode=0o750)
                done.callback(_remove_if_empty, path)
            _hold(path, done)
            stage = path / f".restore-{secrets.token_hex(4)}"
            stage.mkdir(mode=0o700)
            undo.callback(shutil.rmtree, stage, ignore_errors=True)
            yield stage
            undo.callback(shutil.rmtree, path / ARTIFACTS, ignore_errors=True)
            sync_folder(stage / ARTIFACTS)
            (stage / ARTIFACTS).rename(path / ARTIFACTS)
            sync_folder(path)
            (stage / DATABASE).rename(path / DATABASE)
            undo.pop_all()
            stage.rmdir()
            sync_folder(path)
        except OSError as e:
            raise disk_failure(path, e) from e


def _hold(path: Path, done: ExitStack) -> None:
    """Lock the folder as a daemon does, if there is nothing in it."""
    lock = path / _LOCK
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    is_new = not lock.exists()
    if is_new:
        _check_empty(path)  # before a file of ours is in there
    fd = os.open(lock, flags | os.O_CREAT, 0o600)
    done.callback(os.close, fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise error("daemon.already_running", f"a bedsitd uses {path}", "name another folder") from None
    if is_new:
        done.callback(lock.unlink, missing_ok=True)
    _check_empty(path)


def _check_empty(path: Path) -> None:
    left = sorted(set(os.listdir(path)) - _NOTHING)  # noqa: PTH208 - names only
    if left:
        raise error("folder.unusable", f"{path} is not empty: {left[0]!r} is there", "name a new folder")


def _remove_if_empty(path: Path) -> None:
    with suppress(OSError):
        path.rmdir()
