"""The door: the first packet of a connection says who comes; and what a client makes of the answer."""

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any

from bedsit.ipc.door import PROTOCOL
from bedsit.ipc.door import Door as ClientsDoor
from bedsit.ipc.errors import BedsitError
from bedsit.ipc.seqpacket import close_all, recv_packet, send_bytes
from bedsit.supervisor.router import asks
from tests.fuzz.draw import Draw, pack, tell_lies
from tests.fuzz.house import House, make_tenant
from tests.fuzz.oracle import attempt

_OPEN: dict[str, Any] = {"op": "open", "v": PROTOCOL, "tenant": "acme", "key": None, "lane": "fast"}
_OPENED: dict[str, Any] = {
    "op": "opened",
    "tenant": "acme",
    "token": b"",
    "endpoint": "",
    "arena": 1,
    "arena_bytes": 65536,
    "pid": 2,
}
_ASKS: tuple[dict[str, Any], ...] = ({"op": "models"}, {"op": "describe", "model": "gate", "version": 0})
_REFUSALS = ("request.invalid", "wire.malformed", "key.invalid", "tenant.not_found", "session.limit")
_kept: dict[str, House] = {}


def seeds() -> Iterator[bytes]:
    """Good questions and answers as they are, with descriptors, and twisted."""
    yield b"\x00\x00" + pack(_OPEN)
    yield b"\x00\x02" + pack(_OPEN | {"lane": "slow"})
    yield b"\x00\x00" + pack(_OPEN | {"lane": None, "key": "bedsit_00000001_x"})
    for index in range(6):
        yield bytes([1, 0, 1, index, 3, 0, index, 3])
        yield bytes([3, 1, 1, index, 3, 0, index, 3])
    for index in range(2):
        yield bytes([4, 0, index, 1, index, 3, 0, 3])
    yield bytes([1, 0, 1, 4, 3, 0, 7, 3, 9])  # a lane that is a list in a list in a list
    yield b"\x02\x00" + bytes(range(30))


def _house() -> House:
    """One for all inputs of this process: sessions end with each."""
    house = _kept.get("house")
    if house is None or not house.folder.exists():
        house = _kept["house"] = House()
        house.apply([make_tenant("acme", 1)], [])
        _knock(pack(_OPEN), 0, warm=True)  # a tenant's first session makes what later ones share
    return house


def close() -> None:
    """Give back what inputs had in common."""
    house = _kept.pop("house", None)
    if house is not None:
        house.__exit__()


def _knock(body: bytes, count: int, *, warm: bool = False) -> None:
    """The router answers or hangs up, keeps none of the descriptors, and serves the next one."""
    house = _house()
    before = len(os.listdir("/proc/self/fd"))
    with house.knock() as link:
        with contextlib.suppress(OSError):  # the kernel refuses descriptors, or an empty packet is the end
            send_bytes(link, body, [0] * count)
        house.turn(3)
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            answer, fds = recv_packet(link, 1)
            close_all(fds)
            if answer is not None and "error" in answer:
                assert answer["error"]["code"] in _REFUSALS
            else:
                assert answer is None or (answer["op"] == "opened" and len(fds) == 1)
    house.turn(2)
    assert not house.router.sessions
    assert not house.door._waiting
    assert warm or len(os.listdir("/proc/self/fd")) == before
    house.loop._timers.clear()


def _open(body: bytes, count: int) -> None:
    """A client that got this for an answer has a session, or a refusal and no descriptor too many."""
    house = _house()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    folder = house.folder / "other" / "router"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "door.sock"
    path.unlink(missing_ok=True)
    with listener:
        listener.bind(str(path))
        listener.listen()
        before = len(os.listdir("/proc/self/fd"))
        door = ClientsDoor(str(house.folder / "other"), timeout_s=1.0)
        with listener.accept()[0] as peer, contextlib.closing(door):
            if not body:
                return
            send_bytes(peer, body, [0] * count)
            try:
                opened = door.open("acme", None)
            except BedsitError:
                pass
            else:
                assert isinstance(opened.token, bytes)
                assert isinstance(opened.endpoint, str)
                os.close(opened.arena_fd)
        assert len(os.listdir("/proc/self/fd")) == before


def TestOneInput(data: bytes) -> None:  # noqa: N802 - the name that fuzzers look for
    """Whoever knocks with whatever gets a session, a refusal or nothing; and so does who is answered with whatever."""
    draw = Draw(data)
    kind, count = draw.byte() % 5, draw.byte() % 4
    match kind:
        case 0:
            _knock(draw.rest()[:1000], count)
        case 1:
            _knock(pack(draw.twist(_OPEN)), count)
        case 2:
            _knock(tell_lies(draw)[: 1 << 16], count)
        case 3:
            _open(pack(draw.twist(_OPENED)), count)
        case _:
            tenant = _house().router.tenants["acme"]
            question = draw.twist(draw.pick(_ASKS))
            answer = attempt(lambda: asks.answer(tenant, question), "wire.malformed", "model.not_found")
            assert answer is None or pack(answer)
