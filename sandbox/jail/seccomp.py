"""The narrow door to the kernel: filters that the daemon compiled, handed to the kernel as they came.

Nothing here looks into a filter, and libseccomp is never loaded: the list of calls is made where no tenant can be.
"""

import errno
import os
import socket

from bedsit.ipc import seqpacket
from bedsit.sandbox.jail import libc
from bedsit.sandbox.jail.context import Context


class BadFilter(Exception):
    """The kernel can filter, but not with this: the order is broken, and a slot is not built from a broken order."""


class WorkerEnded(Exception):
    """The worker died while its init waited for it. Not an OSError: no kernel without filters looks like this."""


def install(context: Context) -> None:
    """From here on the process makes no system call but those on its list.

    The worker's filter comes with a listener, through which the kernel asks about calls that are on no list. It goes
    to init, over a socket that has carried no tenant's byte yet. Raises OSError when this box has no filters.
    """
    if context.role == "worker":
        _install_and_send(context)
    else:
        context.refusals = _receive(context)
        _install(context.order.init_filter, listen=False)


def _install_and_send(context: Context) -> None:
    with socket.socket(fileno=os.dup(context.control)) as control:
        try:
            listener = _install(context.order.filter, listen=True)
        except BaseException:
            seqpacket.send_packet(control, {"listener": False})
            raise
        seqpacket.send_packet(control, {"listener": listener is not None}, [listener] if listener is not None else [])
    if listener is not None:
        os.close(listener)


def _receive(context: Context) -> int:
    """The worker's listener, or -1. Blocks until the worker got this far."""
    with socket.socket(fileno=os.dup(context.control)) as control:
        try:
            message, fds = seqpacket.recv_packet(control, 1)
        except ConnectionError as e:
            raise WorkerEnded(str(e)) from e
        seqpacket.refuse_descriptors(control)  # that was the only one that init ever takes from a worker
    if message is None:
        raise WorkerEnded("it sent nothing")
    return fds[0] if fds else -1


def _install(program: bytes, *, listen: bool) -> int | None:
    """Install *program*. Gives its listener; None without one, when another filter above us has one already (EBUSY)."""
    if not program:
        raise OSError(errno.ENOSYS, "the daemon sent no filter: libseccomp.so.2 is missing on this box")
    libc.require_filters()
    try:
        try:
            return libc.install_filter(program, listen=listen)
        except OSError as e:
            if not listen or e.errno != errno.EBUSY:
                raise
            return libc.install_filter(program, listen=False)
    except OSError as e:
        raise BadFilter(str(e)) from e


def is_refusing() -> bool:
    """Try what only our own filter answers like this, among all that may have been installed above us.

    Without it, the kernel says that no file has an address of zero (EFAULT); another filter would say EPERM.
    """
    try:
        libc.listxattr_of_nothing()
    except OSError as e:
        return e.errno == errno.EOPNOTSUPP
    return False
