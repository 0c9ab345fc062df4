"""A bundle inside a slot: check the archive, unpack it into the slot's own tmpfs, leave the weights where they are.

The archive is hostile. Only regular files and folders with clean relative names come out of it; nothing is ever
followed, because nothing but those is ever made.
"""

import errno
import os
import tarfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

from bedsit.ipc.errors import error
from bedsit.ipc.manifest import FILE_NAME, Manifest, check_relative_path, parse_manifest
from bedsit.sandbox.worker.rooms import Rooms
from bedsit.sandbox.worker.turns import Turns
from bedsit.sandbox.worker.weights import map_safetensors

_MAX_MEMBERS: Final = 4096
_MAX_TOML: Final = 256 << 10
_COPY_BYTES: Final = 1 << 20


class Bundle:
    """An unpacked bundle: what a model's factory is given.

    ``path`` is the folder with the bundle's files, weights excepted; ``manifest`` is what ``bedsit.toml`` declares;
    ``device`` is what this slot computes on: its GPU, or the CPU.
    """

    def __init__(self, path: Path, manifest: Manifest, fd: int, weights: dict[str, tuple[int, int]]) -> None:
        self.path = path
        self.manifest = manifest
        self.device = torch.device("cpu")
        self.rooms = Rooms(manifest.outputs)
        self.weights_were_asked_for = False
        self.turns: Turns | None = None  # from when the worker serves
        self._fd = fd
        self._weights = weights
        self._given: set[int] = set()

    def output(self, name: str, shape: Sequence[int], dtype: torch.dtype | None = None) -> torch.Tensor:
        """An uninitialised tensor for the output *name* of the call that runs now: written to and returned, not copied.

        It lies in the caller's own memory where there is room for that shape, else it is a new tensor; for a module
        that bedsit has put on a GPU it is one there.
        """
        return self.rooms.output(name, shape, dtype)

    def yield_point(self) -> None:
        """Let others have their turn, where tenants take turns on this device and it is theirs; else nothing happens.

        To be called between the steps of long work: a call that keeps a shared device for longer than its operator
        allows is ended. Raises ``request.cancelled`` when nobody waits for the result any more.
        """
        if self.turns is not None:
            self.turns.yield_point()

    def load_weights(self, file: str | None = None) -> dict[str, torch.Tensor]:
        """The tensors of a weights file by name (*file* may be left out when there is one). Mapped, not copied.

        They may be written to: what is written is this worker's own copy.
        """
        self.weights_were_asked_for = True
        names = list(self._weights)
        wanted = file if file is not None else (names[0] if len(names) == 1 else None)
        if wanted not in self._weights:
            raise error("bundle.invalid", f"no weights file {file!r} is declared", f"declared: {', '.join(names)}")
        tensors = map_safetensors(self._fd, *self._weights[wanted], wanted)
        self._given.update(tensor.untyped_storage().data_ptr() for tensor in tensors.values())
        return tensors

    def has_given(self, tensor: torch.Tensor) -> bool:
        """Whether it is, or lies in, a tensor of `load_weights`."""
        return tensor.untyped_storage().data_ptr() in self._given


def unpack_bundle(fd: int, folder: Path) -> Bundle:
    """Check the archive in *fd* and unpack it into *folder*, which is made. Takes over *fd*, which the mapping needs.

    Raises ``bundle.invalid``, or ``disk.full`` when the slot's bundle space is too small.
    """
    try:
        os.lseek(fd, 0, os.SEEK_SET)
        with os.fdopen(fd, "rb", closefd=False) as source, tarfile.open(fileobj=source, mode="r:") as archive:
            members = _check_members(archive)
            manifest = _read_manifest(archive, members)
            weights = {}
            for name in manifest.weights:
                if name not in members:
                    raise error("bundle.invalid", f"weights file {name!r} is not in the bundle")
                weights[name] = (members[name].offset_data, members[name].size)
            if manifest.runner == "torch-export" and manifest.entry not in members:
                raise error("bundle.invalid", f"entry {manifest.entry!r} is not in the bundle")
            folder.mkdir(parents=True)
            for name, member in members.items():
                if name not in weights:
                    _extract(archive, member, folder / name)
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError, MemoryError) as e:
        # The last three by headers that claim absurd sizes, and by a chain of a thousand headers for one member.
        why = str(e) or type(e).__name__
        raise error("bundle.invalid", f"the archive is broken: {why}", "pack it with `bedsit model deploy`") from None
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise error(
                "disk.full", "the bundle is larger than a slot's bundle space", "declare large files as weights"
            ) from None
        raise error("bundle.invalid", f"the archive cannot be unpacked: {e.strerror}") from None
    return Bundle(folder, manifest, fd, weights)


def _check_members(archive: tarfile.TarFile) -> dict[str, tarfile.TarInfo]:
    members: dict[str, tarfile.TarInfo] = {}
    for member in archive:
        name = member.name
        check_relative_path(name, "archive")
        if member.isdir():
            continue
        if not member.isreg() or member.issparse():
            raise error("bundle.invalid", f"{name!r} is not a regular file", "links and special files are not allowed")
        if name in members:
            raise error("bundle.invalid", f"{name!r} is there twice")
        members[name] = member
        if len(members) > _MAX_MEMBERS:
            raise error("bundle.invalid", f"more than {_MAX_MEMBERS} files")
    return members


def _read_manifest(archive: tarfile.TarFile, members: dict[str, tarfile.TarInfo]) -> Manifest:
    member = members.get(FILE_NAME)
    source = archive.extractfile(member) if member is not None and member.size <= _MAX_TOML else None
    if source is None:
        raise error("bundle.invalid", f"{FILE_NAME} is missing or too long", "a bundle is a folder with a bedsit.toml")
    try:
        table: dict[str, Any] = tomllib.loads(source.read().decode())
    except (ValueError, RecursionError) as e:  # tomllib's own, UnicodeDecodeError, and that of an endless number
        raise error("bundle.invalid", f"{FILE_NAME}: {e}") from None
    return parse_manifest(table)


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    source = archive.extractfile(member)
    if source is None:
        raise error("bundle.invalid", f"{member.name!r} has no content")
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as out:
        left = member.size
        while left:
            piece = source.read(min(left, _COPY_BYTES))
            if not piece:
                raise error("bundle.invalid", f"{member.name!r} is cut off")
            out.write(piece)
            left -= len(piece)
