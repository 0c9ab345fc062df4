"""A model that harms its box for as long as it is told to: ``order`` is (which harm, milliseconds).

``count`` is (how often it tried, how often it was refused), so that a benchmark knows that the harm was really done.
"""

import contextlib
import errno
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

_PIECE: Final = 1 << 20
_MEMORY_PIECE: Final = b"\1" * (16 << 20)
_COUNTS: Final = struct.Struct("QQ")
_LINES: Final = (b"x" * 127 + b"\n") * 512


def bomb_forks(until: float) -> tuple[int, int]:
    """Fork; every child does the same. The counts are of all of them."""
    counts_in, counts_out = os.pipe()
    _fork_on(until, counts_out)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    os.close(counts_out)
    with os.fdopen(counts_in, "rb") as file:  # to the end: the last grandchild has written then
        counts = list(_COUNTS.iter_unpack(file.read()))
    return sum(tried for tried, _ in counts), sum(refused for _, refused in counts)


def _fork_on(until: float, counts: int) -> None:
    tried = refused = 0
    while time.monotonic() < until:
        tried += 1
        try:
            child = os.fork() == 0
        except OSError:
            refused += 1
            continue
        if child:
            try:
                _fork_on(until, counts)
            finally:
                os._exit(0)
    os.write(counts, _COUNTS.pack(tried, refused))


def bomb_memory(_until: float) -> tuple[int, int]:
    """Take memory until the kernel ends it."""
    taken = []
    while True:
        taken.append(bytearray(_MEMORY_PIECE))


def spin(until: float) -> tuple[int, int]:
    """Compute without a pause."""
    tried = 0
    while time.monotonic() < until:
        tried += sum(1 for _ in range(10_000))
    return tried, 0


def flood_log(until: float) -> tuple[int, int]:
    """Print without a pause; the counts are lines."""
    tried = 0
    while time.monotonic() < until:
        tried += os.write(1, _LINES) // 128
    return tried, 0


def flood_descriptors(until: float) -> tuple[int, int]:
    """Open until nothing more can be opened, close all, begin again."""
    tried = refused = 0
    while time.monotonic() < until:
        opened = []
        try:
            while True:
                tried += 1
                opened.append(os.open("/dev/null", os.O_RDONLY))
        except OSError as e:
            refused += e.errno == errno.EMFILE
        for fd in opened:
            os.close(fd)
    return tried, refused


def fill_tmp(until: float) -> tuple[int, int]:
    """Write until /tmp is full, remove the file, begin again; the counts are pieces."""
    tried = refused = 0
    file = Path("/tmp/fill")  # noqa: S108 - the slot's own, and full is what it is to be
    while time.monotonic() < until:
        with file.open("wb", buffering=0) as out:
            try:
                while True:
                    tried += 1
                    out.write(bytes(_PIECE))
            except OSError as e:
                refused += e.errno == errno.ENOSPC
        file.unlink()
    return tried, refused


def answer(_until: float) -> tuple[int, int]:
    """Nothing: the harm is in how often it is asked."""
    return 1, 0


HARMS: Final[dict[str, Callable[[float], tuple[int, int]]]] = {
    "fork_bomb": bomb_forks,
    "memory_bomb": bomb_memory,
    "cpu_spinner": spin,
    "log_flood": flood_log,
    "fd_flood": flood_descriptors,
    "tmp_filler": fill_tmp,
    "request_flood": answer,
}


def build(_bundle: Any = None) -> Callable[[torch.Tensor], torch.Tensor]:
    """The harms as one model."""
    harms = tuple(HARMS.values())

    def harm(order: torch.Tensor) -> torch.Tensor:
        which, ms = order.tolist()
        return torch.tensor(harms[which](time.monotonic() + ms / 1000))

    return harm
