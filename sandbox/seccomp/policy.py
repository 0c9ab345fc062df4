"""Which system calls a slot's processes may make, as data: every line with its reason. Read this to know the door.

What no line names is answered by the slot's init (ENOSYS, so that a library falls back) and reported once by name:
a newer C library that tries something new is then seen, and not obeyed.
Why a list of what is allowed: what a worker needs was measured (strace over start, load, requests and reconnect);
what an attacker could use in the kernels of the coming years nobody can list.
"""

import errno
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

_CLONE_NAMESPACES: Final = 0x7E02_0080  # CLONE_NEW* of sched.h, the time namespace's among them
_CLONE_THREAD: Final = 0x0001_0000
_CLONE_PARENT: Final = 0x0000_8000
_CLONE_PTRACE: Final = 0x0000_2000
_AF_UNIX: Final = 1
_SCHED_OTHER: Final = 0
_F_SETLEASE, _F_GETLEASE, _F_NOTIFY = 1024, 1025, 1026
_MAP_HUGETLB, _MFD_HUGETLB = 0x4_0000, 0x4
_LOW_WORD: Final = 0xFFFF_FFFF  # the kernel reads no more of an ioctl's request or a prctl's option
_MSG_OOB: Final = 0x1
_SO_ATTACH_FILTER, _SO_ATTACH_BPF, _SO_ATTACH_REUSEPORT_CBPF, _SO_ATTACH_REUSEPORT_EBPF = 26, 50, 51, 52
_MADV_MERGEABLE: Final = 12
_FUTEX_COMMAND: Final = 0x7F  # without FUTEX_PRIVATE_FLAG and FUTEX_CLOCK_REALTIME
_LOCK_PI, _UNLOCK_PI, _TRYLOCK_PI, _WAIT_REQUEUE_PI, _CMP_REQUEUE_PI, _LOCK_PI2 = 6, 7, 8, 11, 12, 13

_TCGETS, _TIOCGWINSZ, _FIONREAD, _FIONBIO, _FIONCLEX, _FIOCLEX = 0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451
_NOTIFY_RECEIVE, _NOTIFY_SEND = 0xC050_2100, 0xC018_2101
_PR_GET_DUMPABLE, _PR_SET_NAME, _PR_GET_NAME, _PR_CAPBSET_READ = 3, 15, 16, 23
_PR_GET_NO_NEW_PRIVS, _PR_SET_VMA = 39, 0x5356_4D41


@dataclass(frozen=True, slots=True)
class Guard:
    """A call that is allowed when *argument*, of which the bits of *mask* are looked at, is one of *values*.

    With other values it fails with EPERM. Without a *mask* there is one value, and all 64 bits count. With *refused*
    it is the other way round: *values* fail, and all others are allowed. *families* are further values, each with a
    mask of its own; no value is named twice.
    """

    call: str
    argument: int
    values: tuple[int, ...]
    why: str
    mask: int | None = None
    refused: bool = False
    families: tuple[tuple[int, int], ...] = ()

    @property
    def patterns(self) -> tuple[tuple[int, int], ...]:
        """Everything that is named, as (mask, value). Only for a guard with a mask."""
        return (*((self.mask or 0, value) for value in self.values), *self.families)


@dataclass(frozen=True, slots=True)
class Policy:
    """A whole filter. *refused* maps an errno to groups of calls; *killed* ends the process with SIGSYS.

    *unlisted* is the errno for everything else; None means that the slot's init answers, and reports it.
    """

    allowed: Mapping[str, str]
    guards: tuple[Guard, ...]
    refused: Mapping[int, Mapping[str, str]]
    killed: Mapping[str, str]
    unlisted: int | None = None


_ALLOWED: Final = {
    "what is open already": "read write readv writev pread64 pwrite64 lseek close close_range dup dup2 dup3",
    "files, as far as mounts and landlock go": (
        "open openat stat fstat lstat newfstatat statx access faccessat faccessat2 readlink readlinkat getdents64 "
        "getcwd chdir fchdir mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 truncate ftruncate fsync "
        "fdatasync fallocate fadvise64 chmod fchmod fchmodat umask utimensat statfs fstatfs flock"
    ),
    "memory; executable too, since oneDNN and torch write machine code": "munmap mremap mprotect brk msync",
    "threads": (
        "set_robust_list rseq sched_yield sched_getaffinity sched_setaffinity sched_getparam sched_getscheduler "
        "sched_get_priority_max sched_get_priority_min getcpu"
    ),
    "signals among its own": (
        "rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend sigaltstack "
        "restart_syscall kill tgkill pause"
    ),
    "the end, and waiting for children that cannot be": "exit exit_group wait4 waitid",
    "who am I": (
        "getpid getppid gettid getuid geteuid getgid getegid getresuid getresgid getpgid getpgrp getsid getgroups "
        "getrlimit getrusage getpriority times sysinfo uname capget"
    ),
    "the time": (
        "clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time setitimer getitimer alarm "
        "timerfd_create timerfd_settime timerfd_gettime"
    ),
    "waiting": (
        "poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait eventfd eventfd2 "
        "pipe pipe2"
    ),
    "UNIX sockets, the kinds that `socket` lets through": (
        "connect bind listen accept accept4 getsockname getpeername getsockopt shutdown"
    ),
    "random numbers": "getrandom",
}

_THREADS_ONLY: Final = Guard(
    "clone", 0, (_CLONE_THREAD,), "threads; no process, no namespace", _CLONE_NAMESPACES | _CLONE_THREAD | _CLONE_PTRACE
)
_PROCESSES: Final = Guard(
    "clone", 0, (0,), "threads and children; no namespace", _CLONE_NAMESPACES | _CLONE_PARENT | _CLONE_PTRACE
)
_GUARDS: Final = (
    Guard("socket", 0, (_AF_UNIX,), "the router's sockets; there is no network, and no AF_ALG, NETLINK or VSOCK"),
    Guard("socketpair", 0, (_AF_UNIX,), "as for socket"),
    Guard("sendto", 3, (0,), "no urgent bytes, whose queue was a way in once (CVE-2025-38236)", _MSG_OOB),
    Guard("recvfrom", 3, (0,), "as for sendto", _MSG_OOB),
    Guard("sendmsg", 2, (0,), "as for sendto", _MSG_OOB),
    Guard("recvmsg", 2, (0,), "as for sendto", _MSG_OOB),
    Guard(
        "setsockopt",
        2,
        (_SO_ATTACH_FILTER, _SO_ATTACH_BPF, _SO_ATTACH_REUSEPORT_CBPF, _SO_ATTACH_REUSEPORT_EBPF),
        "all but programs of its own in the kernel",
        _LOW_WORD,
        refused=True,
    ),
    Guard(
        "fcntl",
        1,
        (_F_SETLEASE, _F_GETLEASE, _F_NOTIFY),
        "all but leases and notices, by which a slot learns who opens or changes the files that all slots share",
        _LOW_WORD,
        refused=True,
    ),
    Guard(
        "futex",
        1,
        (_LOCK_PI, _UNLOCK_PI, _TRYLOCK_PI, _WAIT_REQUEUE_PI, _CMP_REQUEUE_PI, _LOCK_PI2),
        "all but locks that inherit priority: a slot has one priority, and the kernel's part of them is intricate",
        _FUTEX_COMMAND,
        refused=True,
    ),
    Guard(
        "madvise",
        2,
        (_MADV_MERGEABLE,),
        "all but pages merged with equal ones of others, whose time to write tells what others hold",
        _LOW_WORD,
        refused=True,
    ),
    Guard("mmap", 3, (0,), "not from the box's huge pages, which no memory limit counts", _MAP_HUGETLB),
    Guard("memfd_create", 1, (0,), "CUDA starts with one; no huge pages here either", _MFD_HUGETLB),
    Guard("prlimit64", 0, (0,), "its own limits, which it can only lower"),
    Guard("sched_setscheduler", 1, (_SCHED_OTHER,), "libzmq asks for it in each thread, and aborts when refused"),
    Guard(
        "ioctl",
        1,
        (_TCGETS, _TIOCGWINSZ, _FIONREAD, _FIONBIO, _FIONCLEX, _FIOCLEX),
        "is it a terminal, how much is there, do not block; nothing that types into a terminal (TIOCSTI)",
        _LOW_WORD,
    ),
    Guard(
        "prctl",
        0,
        (_PR_GET_DUMPABLE, _PR_SET_NAME, _PR_GET_NAME, _PR_CAPBSET_READ, _PR_GET_NO_NEW_PRIVS, _PR_SET_VMA),
        "names of threads and of memory, and questions",
        _LOW_WORD,
    ),
)

_NO_SUCH_CALL: Final = {
    "its flags are behind a pointer, where a filter cannot look: the C library then uses clone": "clone3",
    "a queue of calls that no filter sees": "io_uring_setup io_uring_enter io_uring_register",
    "the favourite of race exploits": "userfaultfd",
    "pages moved between files: shutil and cp then read and write": "sendfile copy_file_range",
    "timers that live in the kernel beside a process and its threads; setitimer and timerfd do": (
        "timer_create timer_settime timer_gettime timer_getoverrun timer_delete"
    ),
    "a second jail inside this one": "landlock_create_ruleset landlock_add_rule landlock_restrict_self",
}
_NOT_PERMITTED: Final = {
    "links would lead whoever follows them": "symlink symlinkat",
    "device nodes and pipes with names; libcuda tries one and goes on": "mknod mknodat",
    "other ids, owners and groups": (
        "setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid setgroups capset chown fchown lchown "
        "fchownat"
    ),
    "more than its share": ("setpriority sched_setparam sched_setattr ioprio_set mlock mlock2 mlockall nice vhangup"),
    "System V objects and message queues": (
        "shmget shmat shmctl shmdt semget semop semtimedop semctl msgget msgsnd msgrcv msgctl mq_open mq_unlink "
        "mq_timedsend mq_timedreceive mq_notify mq_getsetattr"
    ),
    "the box's clock and names": ("clock_settime clock_adjtime settimeofday adjtimex stime sethostname setdomainname"),
    "another address layout or another filter": "personality seccomp",
}
_NO_PROCESSES: Final = {
    "nobody needs them who has no children": "link linkat",
    "other programs": "execve execveat",
    "other processes": "fork vfork",
}
_NOT_SUPPORTED: Final = {
    "shutil.copy2 goes on without attributes when a file system has none": (
        "getxattr lgetxattr fgetxattr setxattr lsetxattr fsetxattr listxattr llistxattr flistxattr removexattr "
        "lremovexattr fremovexattr"
    ),
}
_KILLED: Final = {
    "other processes' memory and descriptors": (
        "ptrace process_vm_readv process_vm_writev process_madvise kcmp pidfd_getfd"
    ),
    "programs in the kernel, and its counters": "bpf perf_event_open",
    "mounts and roots": (
        "mount umount umount2 pivot_root chroot mount_setattr move_mount open_tree fsopen fsconfig fsmount fspick"
    ),
    "namespaces": "setns unshare",
    "files by number, past every folder": "open_by_handle_at name_to_handle_at",
    "keys, which no namespace separates": "keyctl add_key request_key",
    "modules and kernels": "init_module finit_module delete_module kexec_load kexec_file_load reboot",
    "the box's disks and ports": "swapon swapoff iopl ioperm acct quotactl quotactl_fd syslog lookup_dcookie",
}

#: A worker as it is by default: no other program, no other process.
STANDARD: Final = Policy(
    _ALLOWED,
    (*_GUARDS, _THREADS_ONLY),
    {
        errno.ENOSYS: _NO_SUCH_CALL,
        errno.EPERM: _NOT_PERMITTED | _NO_PROCESSES,
        errno.EOPNOTSUPP: _NOT_SUPPORTED,
    },
    _KILLED,
)

#: A weaker one for tenants that need it: children, and the programs that lie in the read-only trees.
SUBPROCESS: Final = Policy(
    _ALLOWED
    | {
        "children and programs": "fork vfork execve execveat setsid setpgid",
        "what a program's start needs": "arch_prctl set_tid_address creat",
        "sem_open(3), of which multiprocessing makes its locks, links": "link linkat",
    },
    (*_GUARDS, _PROCESSES),
    {errno.ENOSYS: _NO_SUCH_CALL, errno.EPERM: _NOT_PERMITTED, errno.EOPNOTSUPP: _NOT_SUPPORTED},
    _KILLED,
)

# What CUDA asks of its nodes. The words themselves lie behind a pointer, where a filter cannot look. Sources: NVIDIA's
# open kernel modules, nv-ioctl-numbers.h (the letter F), uvm_ioctl.h (numbers of one byte; above 199 for its own tests)
# and uvm_linux_ioctl.h (its begin and end).
_DEVICE_REQUESTS: Final = (
    (0xFF00, ord("F") << 8),
    (0xFFFF_FF80, 0),
    (_LOW_WORD, 0x3000_0001),
    (_LOW_WORD, 0x3000_0002),
)


def for_device(policy: Policy) -> Policy:
    """The same policy for a slot that is born for a GPU: ioctl(2) lets the driver's requests through, too.

    A filter sees no file: that they reach no other device is landlock's and the device program's business.
    """
    guards = (replace(guard, families=_DEVICE_REQUESTS) if guard.call == "ioctl" else guard for guard in policy.guards)
    return replace(policy, guards=tuple(guards))


#: The slot's init, which is ours: it passes packets on and writes logs. Nobody answers for it, so nothing is reported.
INIT: Final = Policy(
    {
        "packets, output and logs": (
            "read write writev lseek close fcntl fstat newfstatat ftruncate accept4 sendmsg recvmsg sendto recvfrom "
            "getsockname getsockopt shutdown"
        ),
        "modules that Python imports when it needs them; landlock lets init read those trees only": (
            "open openat stat lstat readlink readlinkat getdents64 getcwd"
        ),
        "waiting": "poll ppoll restart_syscall futex clock_gettime gettimeofday clock_nanosleep pipe2 getrandom",
        "children and signals": "wait4 waitid rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack getpid gettid",
        "memory": "mmap munmap mremap mprotect madvise brk",
        "the end": "exit exit_group",
    },
    (Guard("ioctl", 1, (_TCGETS, _FIONBIO, _FIOCLEX, _NOTIFY_RECEIVE, _NOTIFY_SEND), "notifications", _LOW_WORD),),
    {errno.ENOSYS: _NO_SUCH_CALL},
    _KILLED | {"what init never does": "execve execveat clone fork vfork socket connect"},
    unlisted=errno.EPERM,
)
