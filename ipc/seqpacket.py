"""msgpack maps over UNIX SOCK_SEQPACKET sockets, with descriptors beside them: zygote, init and door speak this.

A packet is one msgpack map of at most 128 KiB. Descriptors travel only where the receiver asked for them: a surplus
one is closed at once, and a receiver that asks for none gives the kernel no room for any.
"""

import array
import contextlib
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgpack

from bedsit.ipc.errors import error
from bedsit.ipc.frames import MAX_ITEMS, decode_body

MAX_PACKET: Final = 128 << 10
_FD_BYTES: Final = array.array("i").itemsize
_SO_PASSRIGHTS: Final = 83  # kernel 6.16; Python has no name for it


def send_packet(sock: socket.socket, message: Mapping[str, Any], fds: Sequence[int] = (), flags: int = 0) -> None:
    """Send one packet. Blocks unless *flags* has MSG_DONTWAIT or the socket is non-blocking (then BlockingIOError)."""
    send_bytes(sock, msgpack.packb(message), fds, flags)


def send_bytes(sock: socket.socket, body: bytes, fds: Sequence[int] = (), flags: int = 0) -> None:
    """Send *body* as one packet with *fds* beside it."""
    if len(body) > MAX_PACKET:
        raise error("wire.malformed", f"a packet of {len(body)} bytes is over the limit of {MAX_PACKET}")
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([body], ancillary, flags | socket.MSG_NOSIGNAL)


def recv_packet(
    sock: socket.socket, max_fds: int = 0, flags: int = 0, *, max_items: int = MAX_ITEMS
) -> tuple[dict[str, Any] | None, list[int]]:
    """The next packet as a map, and its descriptors (the caller closes them); (None, []) when the peer is gone.

    Raises ``wire.malformed`` when it is no map, was too long, brought more descriptors than *max_fds*, or holds an
    array of more than *max_items*.
    """
    body, fds = recv_bytes(sock, max_fds, flags)
    if body is None:
        return None, []
    try:
        message = decode_body(body, max_items)
        if not isinstance(message, dict):
            raise error("wire.malformed", "a packet must hold a map")
    except BaseException:
        close_all(fds)
        raise
    return message, fds


def recv_bytes(sock: socket.socket, max_fds: int = 0, flags: int = 0) -> tuple[bytes | None, list[int]]:
    """The next packet as bytes; (None, []) when the peer is gone. SEQPACKET peers must not send empty packets."""
    space = socket.CMSG_SPACE(max_fds * _FD_BYTES) if max_fds else 0
    body, ancillary, got, _ = sock.recvmsg(MAX_PACKET + 1, space, flags | socket.MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.extend(array.array("i", data[: len(data) - len(data) % _FD_BYTES]))
    if not body:
        close_all(fds)
        return None, []
    # The count too: room for one descriptor is padded to eight bytes, and the kernel fills it with two.
    if got & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(body) > MAX_PACKET or len(fds) > max_fds:
        close_all(fds)
        raise error("wire.malformed", "the peer sent a packet or more descriptors than allowed")
    return body, fds


def refuse_descriptors(sock: socket.socket) -> None:
    """Nobody can send a descriptor to *sock*, nor to what it accepts: the kernel refuses the whole packet (EPERM).

    A kernel before 6.16 cannot. There it drops what a receiver gives it no room for, but closes it in the receiver's
    time: the last close of a big memfd takes tens of milliseconds.
    """
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)


def close_all(fds: Sequence[int]) -> None:
    """Close every descriptor in *fds*."""
    for fd in fds:
        os.close(fd)
