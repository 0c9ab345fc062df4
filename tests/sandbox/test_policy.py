"""The filters as programs: what the kernel would answer to every call, worked out without asking it."""

import errno
import itertools
import platform
import struct
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedsit.ipc.errors import BedsitError
from bedsit.sandbox.seccomp import INIT, STANDARD, SUBPROCESS, Policy, compile_filter, libseccomp, name_call
from bedsit.sandbox.seccomp.compile import others
from bedsit.sandbox.seccomp.policy import for_device

POLICIES = {"standard": STANDARD, "subprocess": SUBPROCESS, "init": INIT}
ON_DEVICES = {f"{name} with a device": for_device(policy) for name, policy in POLICIES.items() if name != "init"}
EVERY = POLICIES | ON_DEVICES
HERE = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}[platform.machine()]
I386, X32 = 0x4000_0003, 0x4000_0000
KILL, NOTIFY, ALLOW = 0x8000_0000, 0x7FC0_0000, 0x7FFF_0000
EPERM, ENOSYS, EOPNOTSUPP = (0x5_0000 | number for number in (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP))
MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS
#: Names of other architectures, or of none: a rule for them is empty here.
FOREIGN = {"umount", "nice", "stime"}


def judge(program: bytes, number: int, *arguments: int, architecture: int = HERE) -> int:
    """What the filter says: classic BPF (linux/filter.h), as far as libseccomp uses it."""
    data = struct.pack("=iIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    code = [*struct.iter_unpack("=HBBI", program)]
    at = value = 0
    while True:
        operation, yes, no, k = code[at]
        at += 1
        match operation:
            case 0x20:  # ld [k]
                (value,) = struct.unpack_from("=I", data, k)
            case 0x54:  # and #k
                value &= k
            case 0x05:  # ja
                at += k
            case 0x15:  # jeq
                at += yes if value == k else no
            case 0x25:  # jgt
                at += yes if value > k else no
            case 0x35:  # jge
                at += yes if value >= k else no
            case 0x06:  # ret #k
                return k
            case _:
                raise AssertionError(hex(operation))


def compile_named(name: str) -> bytes:
    """The filter of a policy by its name here."""
    profile, _, device = name.partition(" with ")
    return compile_filter(profile, has_device=bool(device))


def number_of(name: str) -> int:
    """The number of a call that this architecture has."""
    number = libseccomp.find_number(name)
    assert number is not None
    assert number >= 0
    return number


def names_of(policy: Policy) -> Iterator[str]:
    """Every call that a policy names, as often as it does."""
    for groups in (policy.allowed, policy.killed, *policy.refused.values()):
        for names in groups.values():
            yield from names.split()
    yield from (guard.call for guard in policy.guards)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_every_call_is_named_once_and_known(policy: Policy) -> None:
    """A name in two groups would contradict itself, a misspelt one would be no rule at all."""
    counts = Counter(names_of(policy))
    assert max(counts.values()) == 1
    numbers = {name: libseccomp.find_number(name) for name in counts}
    assert {name for name, number in numbers.items() if number is None or number < 0} <= FOREIGN


@pytest.mark.parametrize("name", EVERY)
def test_each_call_gets_what_its_group_says(name: str) -> None:
    """The compiled program agrees with the list, call by call; it fits into what the kernel takes."""
    policy, program = EVERY[name], compile_named(name)
    assert len(program) // 8 < MAX_INSTRUCTIONS
    wanted = dict.fromkeys(" ".join(policy.allowed.values()).split(), ALLOW)
    wanted |= dict.fromkeys(" ".join(policy.killed.values()).split(), KILL)
    for number, groups in policy.refused.items():
        wanted |= dict.fromkeys(" ".join(groups.values()).split(), 0x5_0000 | number)
    for call, action in wanted.items():
        if (libseccomp.find_number(call) or 0) >= 0:
            assert judge(program, number_of(call)) == action, call


@pytest.mark.parametrize("name", EVERY)
def test_guards_look_at_their_argument_only(name: str) -> None:
    """Named values and one bit beside each of them, with other arguments full and empty."""
    policy, program = EVERY[name], compile_named(name)
    for guard in policy.guards:
        patterns = [((1 << 64) - 1, *guard.values)] if guard.mask is None else guard.patterns
        for (_, value), bit, rest in itertools.product(patterns, [None, *range(64)], (0, (1 << 64) - 1)):
            asked = value if bit is None else value ^ (1 << bit)
            arguments = [rest] * 6
            arguments[guard.argument] = asked
            named = any(asked & mask == other & mask for mask, other in patterns)
            action = ALLOW if named != guard.refused else EPERM
            assert judge(program, number_of(guard.call), *arguments) == action, (guard.call, hex(asked))


@pytest.mark.parametrize("name", POLICIES)
def test_foreign_architectures_end_the_process(name: str) -> None:
    """The 32-bit calls of i386, and those of x32, which come with this architecture's own mark."""
    program = compile_filter(name)
    assert judge(program, number_of("read"), architecture=I386) == KILL
    if platform.machine() == "x86_64":
        assert judge(program, number_of("read") | X32) == KILL


@pytest.mark.parametrize("number", [-1, 434, 500, 1000, (1 << 30) - 1])
def test_what_nobody_named_is_asked_about(number: int) -> None:
    """Calls of coming kernels, and numbers that are none, go to the slot's init; init's own are refused."""
    assert judge(compile_filter("standard"), number) == NOTIFY
    assert judge(compile_filter("subprocess"), number) == NOTIFY
    assert judge(compile_filter("init"), number) == EPERM


def test_profiles_differ_in_what_they_are_for() -> None:
    """Programs and children, and what those need; nothing that is killed in one is open in the other."""
    standard, subprocess = set(names_of(STANDARD)), set(names_of(SUBPROCESS))
    more = set(" ".join(SUBPROCESS.allowed.values()).split()) - set(" ".join(STANDARD.allowed.values()).split())
    assert more == {
        *("fork", "vfork", "execve", "execveat", "setsid", "setpgid", "arch_prctl", "set_tid_address", "creat"),
        *("link", "linkat"),
    }
    assert subprocess - standard == more - {"fork", "vfork", "execve", "execveat", "link", "linkat"}
    assert STANDARD.killed == SUBPROCESS.killed


def test_a_device_opens_its_drivers_requests_and_nothing_else() -> None:
    """Every call gets the answer that it gets without a device, but for ioctl(2) with a request of the driver's."""
    for profile, policy in (("standard", STANDARD), ("subprocess", SUBPROCESS)):
        without, with_device = compile_filter(profile), compile_filter(profile, has_device=True)
        for call in set(names_of(policy)) - {"ioctl"}:
            if (libseccomp.find_number(call) or 0) >= 0:
                for argument in (0, 1, (1 << 64) - 1):
                    asked = number_of(call), *[argument] * 6
                    assert judge(without, *asked) == judge(with_device, *asked), call
        ioctl = number_of("ioctl")
        for request in (0x4600, 0xC020_462A, 1, 37, 0x7F, 0x3000_0001, 0x3000_0002):  # nvidia's, then nvidia-uvm's
            assert judge(without, ioctl, 3, request) == EPERM
            assert judge(with_device, ioctl, 3, request) == ALLOW
        for request in (
            0x5412,
            0x80,
            200,
            0x8001,
            0x3000_0003,
            0x4500,
            0x4700,
            0xC020_642A,
        ):  # TIOCSTI, uvm's tests, ...
            assert judge(with_device, ioctl, 3, request) == EPERM


def test_calls_have_names() -> None:
    """What people know them by; a number that this libseccomp does not know stays one."""
    assert name_call(number_of("ptrace")) == "ptrace"
    assert name_call(1 << 29) == f"number {1 << 29}"


def test_an_unknown_profile_is_a_bug() -> None:
    """There is no way from a wrong word to a filter that lets more through."""
    with pytest.raises((KeyError, BedsitError)):
        compile_filter("none")


@given(
    st.integers(1, 0xFFFF).flatmap(
        lambda mask: st.tuples(st.just(mask), st.sets(st.integers(0, 0xFFFF).map(lambda v: v & mask), min_size=1))
    )
)
def test_others_are_all_the_others(drawn: tuple[int, set[int]]) -> None:
    """Of every value and its complement exactly one holds, and exactly one pair of the complement."""
    mask, values = drawn
    pairs = [*others([(mask, value) for value in values])]
    for asked in {v ^ bit for v in values for bit in (0, *(1 << n for n in range(16)))} | {0, 0xFFFF}:
        holds = sum(asked & m == v for m, v in pairs)
        assert holds == (asked & mask not in values)


@given(st.data())
def test_others_of_families_are_all_the_others(data: st.DataObject) -> None:
    """Also where the masks differ, as long as no value is named twice."""
    patterns: list[tuple[int, int]] = []
    for mask in data.draw(st.lists(st.integers(1, 0xFF), min_size=1, max_size=6)):
        value = data.draw(st.integers(0, 0xFF)) & mask
        if all((value ^ v) & mask & m for m, v in patterns):
            patterns.append((mask, value))
    pairs = [*others(patterns)]
    for asked in range(0x100):
        holds = sum(asked & m == v for m, v in pairs)
        assert holds == (not any(asked & m == v for m, v in patterns))
