"""Making arenas: the router makes every memfd that carries tensors, and never maps one."""

import fcntl
import os
from typing import Final, NamedTuple

_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Arena(NamedTuple):
    """A session's arena: the router's descriptor of it, its number on the wire, its size."""

    fd: int
    number: int
    size_bytes: int


def make_arena(size_bytes: int) -> int:
    """A sparse memfd of *size_bytes* that nobody can shrink, grow or unseal. The caller closes the descriptor."""
    fd = os.memfd_create("bedsit-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size_bytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd
