"""From a policy to the bytes that the kernel takes, and from a number to the name that people know."""

import errno
import functools
import operator
from collections.abc import Iterator, Sequence
from typing import Final

from bedsit.sandbox.seccomp import libseccomp
from bedsit.sandbox.seccomp.libseccomp import ALLOW, KILL_PROCESS, NOT_EQUAL, NOTIFY, Compare, Filter, refuse_with
from bedsit.sandbox.seccomp.policy import INIT, STANDARD, SUBPROCESS, Guard, Policy, for_device

_POLICIES: Final = {"init": INIT, "standard": STANDARD, "subprocess": SUBPROCESS}


@functools.cache
def compile_filter(profile: str, *, has_device: bool = False) -> bytes:
    """The filter of a profile (or of "init") as an array of struct sock_filter; some 3 ms the first time.

    With *has_device* the worker has a device's nodes. Raises ``jail.refused`` on a box without libseccomp.
    """
    policy = _POLICIES[profile]
    return compile_policy(for_device(policy) if has_device else policy)


def compile_policy(policy: Policy) -> bytes:
    """One policy's program. A name that this libseccomp does not know stays unlisted, and so refused."""
    otherwise = NOTIFY if policy.unlisted is None else refuse_with(policy.unlisted)
    with Filter(otherwise) as program:
        for names in policy.allowed.values():
            _add_all(program, ALLOW, names)
        for guard in policy.guards:
            _add_guard(program, guard)
        for number, groups in policy.refused.items():
            for names in groups.values():
                _add_all(program, refuse_with(number), names)
        for names in policy.killed.values():
            _add_all(program, KILL_PROCESS, names)
        return program.export()


@functools.cache
def name_call(number: int) -> str:
    """What people call this system call, as far as this box's libseccomp knows it. Never raises for a number."""
    return libseccomp.find_name(number) or f"number {number}"


def _add_all(program: Filter, action: int, names: str) -> None:
    for name in names.split():
        number = libseccomp.find_number(name)
        if number is not None:
            program.add(action, number)


def _add_guard(program: Filter, guard: Guard) -> None:
    number = libseccomp.find_number(guard.call)
    if number is None:
        return
    refuse = refuse_with(errno.EPERM)
    if guard.mask is None:
        (value,) = guard.values
        program.add(ALLOW, number, [Compare(guard.argument, value)])
        program.add(refuse, number, [Compare(guard.argument, value, operation=NOT_EQUAL)])
        return
    named, unnamed = (refuse, ALLOW) if guard.refused else (ALLOW, refuse)
    for mask, value in guard.patterns:
        program.add(named, number, [Compare(guard.argument, value, mask)])
    for mask, value in others(guard.patterns):
        program.add(unnamed, number, [Compare(guard.argument, value, mask)])


def others(patterns: Sequence[tuple[int, int]], mask: int = 0, value: int = 0) -> Iterator[tuple[int, int]]:
    """All values that none of *patterns* names, (mask, value) pairs, as such pairs, of which exactly one holds.

    libseccomp has no "otherwise" for a call whose arguments do not match: it would fall through to what is unlisted.
    *mask* and *value* are what is decided already. Bits that all patterns look at come first: there they part.
    """
    open_bits = [pattern & ~mask for pattern, _ in patterns]
    if not patterns:
        yield mask, value
    elif all(open_bits):  # else one of them is met
        common = functools.reduce(operator.and_, open_bits) or open_bits[0]
        bit = 1 << common.bit_length() - 1
        for side in (0, bit):
            left = [(m, v) for m, v in patterns if not m & bit or v & bit == side]
            yield from others(left, mask | bit, value | side)
