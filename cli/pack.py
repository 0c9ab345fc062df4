"""A bundle folder as one uncompressed tar, the same bytes for the same files on every machine.

Nothing is staged: the archive is read from the files as it is needed, once for its digest and once for the upload. A
file that changes between the two makes another digest, which the daemon refuses.

Guarantees: ``bedsit.toml`` comes first, the rest in the order of their names; owner, times and permission bits say
nothing; only regular files and folders are in it. Hidden files and ``__pycache__`` are left out. Symbolic links are
refused, not followed: what is packed is what lies in the folder.
"""

import hashlib
import io
import os
import stat
import tarfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from bedsit.ipc.errors import BedsitError, error
from bedsit.ipc.manifest import FILE_NAME, Manifest, parse_manifest

MAX_FILES: Final = 4096
MAX_BYTES: Final = 64 << 30
_READ_BYTES: Final = 1 << 20
_BLOCK: Final = tarfile.BLOCKSIZE


@dataclass(frozen=True, slots=True)
class Member:
    """A file of the bundle: its path inside, and its size in bytes when it was found."""

    path: str
    size: int


@dataclass(frozen=True, slots=True)
class Bundle:
    """A checked bundle folder. ``open`` gives the archive, ``digest`` its SHA-256; both read every file."""

    folder: Path
    manifest: Manifest
    members: tuple[Member, ...]

    @property
    def size(self) -> int:
        """The archive's size in bytes."""
        return sum(len(_header(m)) + m.size + -m.size % _BLOCK for m in self.members) + 2 * _BLOCK

    def open(self) -> io.BufferedReader:
        """The archive, to be read once from its beginning. Raises ``bundle.invalid`` when a file changes its size."""
        return io.BufferedReader(_Archive(self._pieces()), _READ_BYTES)

    def digest(self) -> str:
        """SHA-256 of the archive, in hex."""
        with self.open() as archive:
            return hashlib.file_digest(archive, "sha256").hexdigest()

    def _pieces(self) -> Iterator[bytes]:
        for member in self.members:
            yield _header(member)
            yield from _read_member(self.folder / member.path, member)
            yield bytes(-member.size % _BLOCK)
        yield bytes(2 * _BLOCK)


def open_bundle(folder: Path) -> Bundle:
    """Check *folder*: manifest, every file that it names, what may not be packed. Raises ``bundle.invalid``."""
    if not folder.is_dir():
        raise _invalid(f"{folder} is not a folder", f"a bundle is a folder with a {FILE_NAME}")
    manifest = _read_manifest(folder / FILE_NAME)
    members = sorted(_find_members(folder, ""), key=lambda m: (m.path != FILE_NAME, m.path))
    if len(members) > MAX_FILES:
        raise _invalid(f"{len(members)} files are more than {MAX_FILES}", "put data into few files")
    total = sum(m.size for m in members)
    if total > MAX_BYTES:
        raise _invalid(f"{total} bytes are more than {MAX_BYTES}")
    _check_named_files(manifest, {m.path for m in members})
    return Bundle(folder, manifest, tuple(members))


class _Archive(io.RawIOBase):
    """An iterator of bytes as a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        target = memoryview(buffer)  # type: ignore[arg-type]  # typeshed knows no name for a writable buffer in 3.11
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        count = min(len(target), len(self._rest))
        target[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def _find_members(folder: Path, prefix: str) -> Iterator[Member]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__pycache__":
                continue
            path = prefix + entry.name
            try:
                path.encode("utf-8")
            except UnicodeEncodeError:
                raise _invalid(f"{path!r} is not a UTF-8 name", "rename it") from None
            mode = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(mode.st_mode):
                yield from _find_members(Path(entry.path), path + "/")
            elif stat.S_ISREG(mode.st_mode):
                yield Member(path, mode.st_size)
            elif stat.S_ISLNK(mode.st_mode):
                raise _invalid(f"{path!r} is a symbolic link", "put the file itself into the folder")
            else:
                raise _invalid(f"{path!r} is not a regular file", "only files and folders can be packed")


def _read_manifest(path: Path) -> Manifest:
    try:
        with _open_file(path) as file:
            table = tomllib.load(file)
    except FileNotFoundError:
        raise _invalid(f"{path} is missing", f"a bundle is a folder with a {FILE_NAME}") from None
    except (ValueError, RecursionError) as e:  # tomllib's own, UnicodeDecodeError, and that of an endless number
        raise _invalid(f"{path}: {e}") from None
    except OSError as e:
        raise _invalid(f"{path} cannot be read: {e.strerror}") from None
    return parse_manifest(table)


def _check_named_files(manifest: Manifest, paths: set[str]) -> None:
    for name in manifest.weights:
        if name not in paths:
            raise _invalid(f"weights file {name!r} is not in the folder", f"the files there: {_some(paths)}")
    if manifest.runner == "torch-export":
        candidates = [manifest.entry]
    else:
        module = manifest.entry.partition(":")[0].replace(".", "/")
        candidates = [f"{module}.py", f"{module}/__init__.py"]
    if not any(c in paths for c in candidates):
        raise _invalid(
            f"entry {manifest.entry!r} needs {' or '.join(candidates)}, which is not in the folder",
            f"the files there: {_some(paths)}",
        )


def _some(paths: set[str]) -> str:
    few = sorted(paths)[:8]
    return ", ".join(few) + (", ..." if len(paths) > len(few) else "")


def _header(member: Member) -> bytes:
    info = tarfile.TarInfo(member.path)
    info.size = member.size
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict")


def _read_member(path: Path, member: Member) -> Iterator[bytes]:
    left = member.size
    try:
        with _open_file(path) as file:
            while left:
                data = file.read(min(left, _READ_BYTES))
                if not data:
                    break
                left -= len(data)
                yield data
            grown = bool(file.read(1)) if not left else False
    except OSError as e:
        raise _invalid(f"{member.path} cannot be read: {e.strerror}") from None
    if left or grown:
        raise _invalid(f"{member.path} changes while it is being packed", "wait until it is written")


def _open_file(path: Path) -> BinaryIO:
    # Not through a link, and not stuck on a pipe, whatever was put there since the folder was listed.
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb")


def _invalid(message: str, hint: str = "") -> BedsitError:
    return error("bundle.invalid", message, hint)
