"""``bedsit backup``: the box's desired state in one file."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from bedsit.cli.archive import About, write_archive
from bedsit.cli.box import Box
from bedsit.cli.command import make_app, verb
from bedsit.cli.text import format_size
from bedsit.ipc.errors import BedsitError, error

app = make_app()


@verb(
    app,
    "backup",
    examples="bedsit backup box.tar\nbedsit backup /backup/nightly.tar --replace",
)
def back_up(
    box: Box,
    file: Annotated[Path, typer.Argument(readable=False, metavar="FILE", help="The tar to write.")],
    *,
    replace: Annotated[bool, typer.Option("--replace", help="The file exists: put the new one in its place.")] = False,
) -> None:
    """Write tenants, keys, models, limits and events, and every artifact that models need, into one tar.

    It is as the box was at one moment, while everything goes on. The file is there in full or not at all, and only you
    can read it: it lets in whoever has a key. Slots, and what tenants printed, are not in it.
    """
    with _new_file(file, replace=replace) as out:
        about = write_archive(box.stream("backup"), out)
    record = {"file": str(file), **about._asdict()}
    box.screen.show_record("backup", record, describe(about, file), str(file))
    box.screen.next(f"bedsit restore {file} --state-dir DIR")


def describe(about: About, file: Path) -> list[tuple[str, object]]:
    """What a person wants to know of a backup."""
    return [
        ("file", file),
        ("artifacts", about.files - 1),
        ("size", format_size(about.size_bytes)),
        ("made", about.created_at),
        ("by", f"bedsit {about.bedsit}"),
        ("box", about.instance),
    ]


def disk_failure(path: Path, e: OSError) -> BedsitError:
    """An OSError from writing below *path*, as the error that the operator sees."""
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
        return error("disk.full", f"{path}: {e.strerror}", "free space on this file system; nothing was changed")
    return error("folder.unusable", f"{path}: {e.strerror or e}", "choose another place or mend this one")


@contextmanager
def _new_file(path: Path, *, replace: bool) -> Iterator[BinaryIO]:
    """A file beside *path* that only its owner can read; it gets that name, on disk, when the block ends well.

    Raises ``input.invalid`` where the name is taken, also when that happened meanwhile.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    taken = error("input.invalid", f"{path} exists", "name a new file, or pass --replace")
    if not replace and os.path.lexists(path):
        raise taken
    with ExitStack() as undo:
        try:
            fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            undo.callback(beside.unlink, missing_ok=True)
            with os.fdopen(fd, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if replace:
                beside.replace(path)
            else:
                os.link(beside, path)
            sync_folder(path.parent)
        except FileExistsError:
            raise taken from None
        except OSError as e:
            raise disk_failure(path, e) from e


def sync_folder(path: Path) -> None:
    """Let the names in a folder survive the end of the machine."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
