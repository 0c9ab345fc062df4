"""Which device nodes a slot may open or make, whatever nodes it finds: a program on its cgroup2 group.

The nodes in a slot's /dev are the first wall; this one holds also for a node that should not be there. The program is
assembled here, without a compiler: for each rule a few comparisons, and at the end a refusal (EPERM). It works on any
cgroup2 mount, also one without controllers (kernel 4.15, CONFIG_CGROUP_BPF). Sources: bpf(2), Linux
Documentation/bpf/standardization/instruction-set.rst, struct bpf_cgroup_dev_ctx in include/uapi/linux/bpf.h.
"""

import contextlib
import ctypes
import dataclasses
import errno
import functools
import os
import struct
import sys
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal

from bedsit.ipc.errors import BedsitError, error
from bedsit.sandbox.cgroup.backend import naming
from bedsit.sandbox.nodes import Node

_SYSCALL: Final = {"x86_64": 321, "aarch64": 280}
_PROG_LOAD, _PROG_ATTACH, _OBJ_GET_INFO_BY_FD, _PROG_QUERY = 5, 8, 15, 16
_TYPE_CGROUP_DEVICE: Final = 15
_ATTACH_CGROUP_DEVICE: Final = 6
_KINDS: Final = {"b": 1, "c": 2}
_ACCESS: Final = {"m": 1, "r": 2, "w": 4}
_LOG_BYTES: Final = 64 << 10
_MOST_WORDS: Final = 1000
_MOST_SHOWN: Final = 8
_WORD: Final = 8  # bytes of one instruction

# Registers: 0 the answer, 1 the context, 2 access, 3 major, 4 minor, 5 kind, 6 scratch.
_LOAD_WORD, _MOVE, _MOVE_NUMBER, _AND, _SHIFT_RIGHT, _JUMP_IF_NOT, _EXIT = 0x61, 0xBF, 0xB7, 0x57, 0x77, 0x55, 0x95


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
    """What is allowed: *access* is some of "r", "w" and "m" (mknod); a *minor* of None means every one."""

    kind: Literal["b", "c"]
    major: int
    minor: int | None
    access: str


#: /dev/null, zero, full, random and urandom: the nodes in a slot's own /dev.
STANDARD: Final = tuple(Rule("c", 1, minor, "rw") for minor in (3, 5, 7, 8, 9))


def assemble(rules: Iterable[Rule]) -> bytes:
    """The program that allows what one of *rules* allows, and refuses everything else."""
    code = [
        _encode(_LOAD_WORD, 2, 1, 0),
        _encode(_LOAD_WORD, 3, 1, 4),
        _encode(_LOAD_WORD, 4, 1, 8),
        _encode(_MOVE, 5, 2),
        _encode(_AND, 5, value=0xFFFF),  # the lower half of access_type is the kind
        _encode(_SHIFT_RIGHT, 2, value=16),
    ]
    for rule in rules:
        code += _encode_rule(rule)
    return b"".join([*code, _encode(_MOVE_NUMBER, 0, value=0), _encode(_EXIT)])


def _encode_rule(rule: Rule) -> list[bytes]:
    """Comparisons that jump to the next rule, and an answer."""
    wanted = [(5, _KINDS[rule.kind]), (3, rule.major)]
    if rule.minor is not None:
        wanted.append((4, rule.minor))
    refused = sum(_ACCESS.values()) & ~sum(_ACCESS[letter] for letter in rule.access)
    allow = [
        _encode(_MOVE, 6, 2),
        _encode(_AND, 6, value=refused),
        _encode(_JUMP_IF_NOT, 6, offset=2, value=0),
        _encode(_MOVE_NUMBER, 0, value=1),
        _encode(_EXIT),
    ]
    length = len(wanted) + len(allow)
    tests = [
        _encode(_JUMP_IF_NOT, register, offset=length - number - 1, value=value)
        for number, (register, value) in enumerate(wanted)
    ]
    return tests + allow


def _encode(operation: int, to: int = 0, origin: int = 0, offset: int = 0, value: int = 0) -> bytes:
    registers = to | origin << 4 if sys.byteorder == "little" else to << 4 | origin
    return struct.pack("=BBhi", operation, registers, offset, value)


class DeviceProgram:
    """One rule list, loaded into the kernel once. Closed at the latest when nobody refers to it; attachments stay."""

    def __init__(self, rules: Iterable[Rule] = STANDARD) -> None:
        """Load it. Raises ``cgroup.refused`` with what the kernel's verifier said."""
        self._rules = tuple(rules)
        self._fd = load(assemble(self._rules))
        self._close = weakref.finalize(self, os.close, self._fd)
        self.id = _read_id(self._fd)

    def allow_also(self, nodes: Iterable[Node]) -> "DeviceProgram":
        """Another program, that lets these nodes be opened too. Raises ``cgroup.refused``."""
        return DeviceProgram((*self._rules, *(Rule("c", node.major, node.minor, "rw") for node in nodes)))

    def close(self) -> None:
        """Attach it no more. Groups that have it keep it."""
        self._close()

    def attach(self, group: Path) -> None:
        """Put it on *group*, instead of the one that is there: a newer daemon's rules replace an older one's.

        Without BPF_F_ALLOW_MULTI: a group below cannot have another one. Programs of groups above hold as well when
        they were attached with that flag, as systemd does; one with BPF_F_ALLOW_OVERRIDE is replaced by ours, and one
        without either flag lets no other be attached below. Raises ``cgroup.refused``.
        """
        with naming(group, "a device program"):
            fd = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                _bpf(_PROG_ATTACH, struct.pack("=IIII", fd, self._fd, _ATTACH_CGROUP_DEVICE, 0))
            finally:
                os.close(fd)

    def check(self, group: Path) -> str | None:
        """None when this program is on *group*, and no other; else what is wrong. Asks the kernel."""
        found = query(group)
        if not found:
            return "no program on its group says which devices it may open"
        return None if found == [self.id] else f"another program, {found[0]}, says which devices it may open"


class NoProgram:
    """Stands in where the kernel takes no such program: nothing is attached, and every check says why."""

    def __init__(self, why: str) -> None:
        self._why = why

    def attach(self, group: Path) -> None:
        """Do nothing."""

    def allow_also(self, _nodes: Iterable[Node]) -> "NoProgram":
        """Nor is there another one."""
        return self

    def close(self) -> None:
        """Do nothing."""

    def check(self, _group: Path) -> str | None:
        """Say why there is none."""
        return self._why


def load_program(rules: Iterable[Rule] = STANDARD) -> DeviceProgram | NoProgram:
    """The program of *rules*. A box whose kernel refuses it has one wall less, and says so slot by slot."""
    try:
        return DeviceProgram(rules)
    except BedsitError as e:
        return NoProgram(e.message)


def query(group: Path) -> list[int]:
    """The ids of the device programs on *group* itself. Raises ``cgroup.refused``."""
    ids = (ctypes.c_uint32 * _MOST_SHOWN)()
    with naming(group, "a query for device programs"):
        fd = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            question = struct.pack("=IIIIQII", fd, _ATTACH_CGROUP_DEVICE, 0, 0, ctypes.addressof(ids), _MOST_SHOWN, 0)
            _, answer = _bpf(_PROG_QUERY, question)
        finally:
            os.close(fd)
    (count,) = struct.unpack_from("=I", answer, 24)
    return list(ids[:count])


def load(code: bytes) -> int:
    """Have the kernel take a program; gives a descriptor. Raises ``cgroup.refused`` with its verifier's words."""
    text, licence = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"")
    order = struct.pack(
        "=IIQQ", _TYPE_CGROUP_DEVICE, len(code) // _WORD, ctypes.addressof(text), ctypes.addressof(licence)
    )
    try:
        fd, _ = _bpf(_PROG_LOAD, order + bytes(24))
    except OSError as e:
        why = _ask_verifier(order) or e.strerror
        hint = "it takes a kernel with CONFIG_CGROUP_BPF, CAP_BPF and CAP_NET_ADMIN"
        raise error("cgroup.refused", f"the kernel refused the device program: {why}", hint, errno=e.errno) from e
    return fd


def _ask_verifier(order: bytes) -> str:
    """What the verifier says against a program that was just refused: asked for only now, because it costs time."""
    log = ctypes.create_string_buffer(_LOG_BYTES)
    with contextlib.suppress(OSError):
        fd, _ = _bpf(_PROG_LOAD, order + struct.pack("=IIQII", 1, _LOG_BYTES, ctypes.addressof(log), 0, 0))
        os.close(fd)
    return log.value.decode(errors="replace").strip()[-_MOST_WORDS:]


def _read_id(fd: int) -> int:
    info = (ctypes.c_uint32 * 2)()  # type and id: the beginning of struct bpf_prog_info
    _bpf(_OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", fd, ctypes.sizeof(info), ctypes.addressof(info)))
    return int(info[1])


def _bpf(command: int, attributes: bytes) -> tuple[int, bytes]:
    """bpf(2): gives its result and the attributes as the kernel left them. Raises OSError."""
    # JUSTIFICATION: no binding of bpf(2) is maintained that needs no compiler, and four commands are all it takes.
    # SAFETY: the buffer is ours, as long as said, and whatever it points to is held by the caller's frame.
    number = _SYSCALL.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, f"bpf(2) has no number here for {os.uname().machine}")
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result = int(_libc().syscall(ctypes.c_long(number), ctypes.c_long(command), buffer, ctypes.c_long(len(attributes))))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result, buffer.raw


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc
