"""The filters of system calls, compiled in the daemon from a list that people can read.

Zygote, init and worker only hand the finished bytes to the kernel: nothing in here is ever imported there.
"""

from bedsit.sandbox.seccomp.compile import compile_filter, name_call
from bedsit.sandbox.seccomp.policy import INIT, STANDARD, SUBPROCESS, Policy

__all__ = ["INIT", "STANDARD", "SUBPROCESS", "Policy", "compile_filter", "name_call"]
