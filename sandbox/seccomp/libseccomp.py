"""The part of libseccomp that a filter needs: init, attributes, rules, export, and the names of calls.

JUSTIFICATION: ctypes over the box's libseccomp.so.2 (seccomp(2), libseccomp's man pages), because the published
bindings are dormant. An assembler of our own would have to keep the table of call numbers of every architecture.
SAFETY: all argument types are declared; the library runs in the daemon only, on constants of ours.
"""

import ctypes
import errno
import functools
import os
from collections.abc import Sequence
from typing import Final, NamedTuple, Self

from bedsit.ipc.errors import BedsitError, error

_LIBRARY: Final = "libseccomp.so.2"

KILL_PROCESS: Final = 0x8000_0000
NOTIFY: Final = 0x7FC0_0000
ALLOW: Final = 0x7FFF_0000
_ERRNO: Final = 0x0005_0000

EQUAL: Final = 4  # enum scmp_compare
_MASKED_EQUAL: Final = 7
NOT_EQUAL: Final = 1

_BAD_ARCHITECTURE: Final = 2  # enum scmp_filter_attr
_OPTIMIZE: Final = 8
_BINARY_TREE: Final = 2
_UNKNOWN: Final = -1  # __NR_SCMP_ERROR


def refuse_with(number: int) -> int:
    """The action that makes a call fail with this errno."""
    return _ERRNO | number


class Compare(NamedTuple):
    """A condition on one argument: all 64 bits of it, or, with a *mask*, those bits only."""

    argument: int
    value: int
    mask: int | None = None
    operation: int = EQUAL


class _Comparison(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operation", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:
        raise error("jail.refused", f"{_LIBRARY} is not on this box", "apt-get install libseccomp2") from None
    context, number, action = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32
    library.seccomp_init.argtypes = [action]
    library.seccomp_init.restype = context
    library.seccomp_release.argtypes = [context]
    library.seccomp_release.restype = None
    library.seccomp_attr_set.argtypes = [context, number, action]
    library.seccomp_rule_add_array.argtypes = [context, action, number, ctypes.c_uint, ctypes.POINTER(_Comparison)]
    library.seccomp_export_bpf.argtypes = [context, number]
    library.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
    library.seccomp_arch_native.restype = action
    library.seccomp_syscall_resolve_num_arch.argtypes = [action, number]
    library.seccomp_syscall_resolve_num_arch.restype = context  # a char * that is ours to free
    return library


def is_there() -> bool:
    """Whether this box has the library."""
    try:
        _library()
    except BedsitError:
        return False
    return True


def find_number(name: str) -> int | None:
    """The number of a call on this architecture; None when this libseccomp does not know the name.

    Negative for a call that only other architectures have: a rule for it is empty.
    """
    number = int(_library().seccomp_syscall_resolve_name(name.encode()))
    return None if number == _UNKNOWN else number


def find_name(number: int) -> str | None:
    """The name of a call on this architecture; None when this libseccomp is older than the call."""
    library = _library()
    pointer = library.seccomp_syscall_resolve_num_arch(library.seccomp_arch_native(), number)
    if not pointer:
        return None
    try:
        return ctypes.string_at(pointer).decode("ascii", "replace")
    finally:
        libc = ctypes.CDLL(None)
        libc.free.argtypes = [ctypes.c_void_p]
        libc.free(pointer)


class Filter:
    """A filter in the making. What no rule speaks of gets *otherwise*; a foreign architecture ends the process.

    Every method raises ``jail.refused`` when the library does not take it. Use it as a context manager.
    """

    def __init__(self, otherwise: int) -> None:
        self._library = _library()
        self._otherwise = otherwise
        self._context = self._library.seccomp_init(otherwise)
        if not self._context:
            raise error("jail.refused", "libseccomp does not start a filter")
        # The library's own default ends one thread only, which leaves a process that hangs for ever.
        self._check(self._library.seccomp_attr_set(self._context, _BAD_ARCHITECTURE, KILL_PROCESS), "bad architecture")
        # A tree of the numbers instead of a line of them; libseccomp before 2.5 does not know it, and is only slower.
        self._library.seccomp_attr_set(self._context, _OPTIMIZE, _BINARY_TREE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._library.seccomp_release(self._context)

    def add(self, action: int, number: int, conditions: Sequence[Compare] = ()) -> None:
        """*action* for this call when all *conditions* hold; for one call the conditions must exclude each other."""
        if action == self._otherwise:
            return  # the library refuses to be told twice
        array = (_Comparison * len(conditions))(
            *(
                _Comparison(c.argument, c.operation, c.value, 0)
                if c.mask is None
                else _Comparison(c.argument, _MASKED_EQUAL, c.mask, c.value)
                for c in conditions
            )
        )
        result = self._library.seccomp_rule_add_array(self._context, action, number, len(conditions), array)
        self._check(result, f"a rule for call {number}")

    def export(self) -> bytes:
        """The finished program, as an array of struct sock_filter."""
        fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
        try:
            self._check(self._library.seccomp_export_bpf(self._context, fd), "the export")
            return os.pread(fd, os.fstat(fd).st_size, 0)
        finally:
            os.close(fd)

    def _check(self, result: int, what: str) -> None:
        if result < 0:
            raise error("jail.refused", f"libseccomp: {what}: {errno.errorcode.get(-result, result)}")
