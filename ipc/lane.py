"""A lane: how packets get from one process to another. What the two kinds have in common.

    fast   SEQPACKET packets on a connection that is there anyway: the door's for a client, the slot's for a worker
    zmq    ZeroMQ over a UNIX socket: the lane that is always there, and later the one that leaves the box

Nothing outside of `fastlane` and `zmqlane` knows which lane a packet came on; the packets are the same.
"""

from typing import Final, Literal, Protocol, get_args

LaneName = Literal["fast", "zmq"]
LANES: Final[tuple[str, ...]] = get_args(LaneName)


class Channel(Protocol):
    """A lane to one peer.

    Never blocks but in ``wait``: what cannot be sent now is refused, and what is not there yet is None. ZeroMQ's
    descriptor is edge-triggered and a *send* may swallow the edge of a packet that arrived meanwhile, so after sending,
    call ``receive`` until it gives None.
    """

    ended: bool
    """Whether the peer is known to be gone. Only the fast lane sees that by itself."""

    def fileno(self) -> int:
        """The descriptor that becomes readable when packets may be waiting."""

    def send(self, packet: bytes) -> bool:
        """Hand the packet over; False when the peer takes nothing right now, or is gone."""

    def receive(self) -> bytes | None:
        """The next packet, or None."""

    def wait(self, timeout_s: float) -> bytes | None:
        """The next packet, or None after *timeout_s* or when the peer is gone; blocks."""

    def wait_for_room(self, timeout_s: float) -> None:
        """Block until ``send`` may be worth another try, or *timeout_s* has passed."""

    def close(self) -> None:
        """Drop what is unsent and close."""
