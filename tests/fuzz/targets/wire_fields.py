"""Envelopes: what the router, both clients and a worker read first of every packet."""

from collections.abc import Iterator

from bedsit.ipc import wire
from bedsit.ipc.errors import error
from bedsit.ipc.wire import ENVELOPE_BYTES, MAX_PACKET, Kind
from tests.fuzz.oracle import attempt


def seeds() -> Iterator[bytes]:
    """A packet of each kind."""
    row = wire.encode_tensor("float32", (1,), wire.Place.INLINE, 0)
    yield wire.pack_packet(Kind.REQUEST, 1, row, bytes(4), tensors=1, model=1, model_version=1, arena=1, rows=1)
    yield wire.pack_packet(Kind.RESPONSE, 2**64 - 1, row, bytes(4), tensors=1)
    yield wire.pack_error(3, error("queue.full", "full", retry_after_s=0.5))
    yield wire.pack_map(Kind.ASK, 4, {"op": "models"})
    yield wire.pack_packet(Kind.CANCEL, 5)
    yield wire.pack_packet(Kind.READY, 0)


def TestOneInput(data: bytes) -> None:  # noqa: N802 - the name that fuzzers look for
    """What is accepted has its parts where it says, and survives a new address with all else unchanged."""
    for packet in (data, bytearray(data)):
        envelope = attempt(lambda packet=packet: wire.read_envelope(packet), "wire.malformed")  # type: ignore[misc]
        fields = attempt(lambda packet=packet: wire.read_fields(packet), "wire.malformed")  # type: ignore[misc]
        assert (envelope is None) == (fields is None)
    route = attempt(lambda: wire.read_route(data), "wire.malformed")
    if envelope is None or fields is None:
        return
    assert tuple(envelope) == fields
    assert route == (envelope.kind, envelope.id)
    header, body = wire.header_of(data, envelope), wire.body_of(data, envelope)
    assert ENVELOPE_BYTES + len(header) + len(body) <= len(data) <= MAX_PACKET
    assert len(header) == envelope.header_bytes
    moved = wire.readdress(data, Kind.ERROR, 7, 9, 11)
    assert wire.read_envelope(moved) == envelope._replace(kind=Kind.ERROR, id=7, arena=9, left=11)
    assert moved[wire.ROUTE_BYTES :] == data[wire.ROUTE_BYTES :]
