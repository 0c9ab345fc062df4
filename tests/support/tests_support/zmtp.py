"""A peer that speaks ZMTP 3.0 by hand, to send what libzmq itself never would (rfc.zeromq.org/spec/23)."""

import socket
import struct

#: Its first 64 bytes: version 3.0, no security.
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_READY = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"


def greet(path: str) -> socket.socket:
    """Connect as a DEALER that has made its greeting: libzmq cuts off whoever sends a message before both are ready."""
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(30)
    peer.connect(path)
    peer.sendall(GREETING)
    peer.sendall(b"\x04" + bytes([len(_READY)]) + _READY)
    answer = b""
    while b"READY" not in answer:
        got = peer.recv(256)
        assert got, "cut off while greeting"
        answer += got
    return peer
