"""A worker without a process: requests of a real session, answered by the worker's own code in this one."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from bedsit.ipc import wire
from bedsit.ipc.arena import Arena
from bedsit.ipc.errors import BedsitError
from bedsit.ipc.leasepage import LeaseView
from bedsit.ipc.session import Pending, Session, Tensors
from bedsit.sandbox.worker.arenas import ArenaTable, Mapped
from bedsit.sandbox.worker.bundle import Bundle
from bedsit.sandbox.worker.calls import Calls
from bedsit.sandbox.worker.lanes import Order
from bedsit.sandbox.worker.runners import Runner
from bedsit.sandbox.worker.turns import Turns
from tests_support.packets import Row, X, Y, make_info

SIZE = 1 << 22
NUMBER = 7


def make_mapped(size: int = 16 * 4096) -> Mapped:
    """An arena as a worker has it."""
    table = ArenaTable()
    fd = os.memfd_create("test-arena", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    table.give(NUMBER, fd, size)
    os.close(fd)
    mapped = table.find(NUMBER)
    assert mapped is not None
    return mapped


#: Of a worker that takes turns with nobody.
NO_TURNS: Final = Turns(LeaseView.free(), lambda: False, lambda _word, _epoch: None)


class Desk:
    """A session and a worker with one arena between them. *call* is the model; it gets what its manifest declares.

    *seen* has the inputs of every call of the model.
    """

    def __init__(
        self,
        call: Callable[..., Any],
        inputs: Sequence[Row] = (X,),
        outputs: Sequence[Row] = (Y,),
        *,
        tensors: Tensors = "numpy",
        size: int = SIZE,
        turns: Turns = NO_TURNS,
        **more: Any,
    ) -> None:
        self.info = make_info(inputs, outputs, **more)
        self.arenas = ArenaTable()
        self.session = Session(self.open_arena(NUMBER, size), tensors)
        self.bundle = Bundle(Path("/nonexistent"), self.info.manifest, -1, {})
        self.model = call
        self.seen: list[tuple[torch.Tensor, ...]] = []
        self.calls = Calls({(self.info.number, self.info.version): Runner(self.bundle, self._call)}, self.arenas, turns)
        self.replies: list[bytes] = []

    def open_arena(self, number: int, size: int = SIZE) -> Arena:
        """An arena that both ends have."""
        fd = os.memfd_create("test-arena", os.MFD_CLOEXEC)
        os.ftruncate(fd, size)
        self.arenas.give(number, fd, size)
        return Arena(fd, size, number)

    @property
    def arena(self) -> Mapped:
        """The arena, as the worker has it."""
        found = self.arenas.find(NUMBER)
        assert found is not None
        return found

    def order(self, packet: bytes) -> Order:
        """A packet as it is handed to the worker's code."""
        return Order(bytearray(packet), wire.read_fields(packet), self.replies.append)

    def answer(self, *packets: bytes, cancelled: Sequence[int] = ()) -> list[bytes]:
        """What the worker answers to a batch."""
        self.replies.clear()
        with torch.inference_mode():
            self.calls.answer([self.order(packet) for packet in packets], lambda order: order.fields[4] in cancelled)
        return list(self.replies)

    def infer_all(self, *requests: dict[str, Any], cancelled: Sequence[int] = ()) -> list[Pending]:
        """Requests that run as one batch; each has its answer."""
        begun = [self.session.begin(self.info, None, inputs, 0) for inputs in requests]
        doomed = [begun[index][0].id for index in cancelled]
        replies = self.answer(*(packet for _, packet in begun), cancelled=doomed)
        assert sorted(wire.read_route(reply)[1] for reply in replies) == [pending.id for pending, _ in begun]
        for reply in replies:
            assert len(reply) <= wire.MAX_PACKET
            self.session.accept(reply)
        return [pending for pending, _ in begun]

    def infer(self, **inputs: Any) -> Any:
        """One request; room for its outputs is learned as a client does. Raises what the worker answers."""
        for _ in range(2):
            (pending,) = self.infer_all(inputs)
            if pending.failure is None or not self.session.learn_sizes(self.info, pending.failure):
                break
        return pending.take()

    def refusal(self, **inputs: Any) -> str:
        """The code with which a request is refused."""
        (pending,) = self.infer_all(inputs)
        return code_of(pending)

    def _call(self, *inputs: torch.Tensor) -> Any:
        self.seen.append(inputs)
        return self.model(*inputs)


def code_of(pending: Pending) -> str:
    """The code of its failure; empty when it is none."""
    assert pending.done
    return "" if pending.failure is None else pending.failure.code


def error_of(reply: bytes) -> BedsitError:
    """The error in an answer."""
    envelope = wire.read_envelope(reply)
    assert envelope.kind == wire.Kind.ERROR
    return wire.decode_error(reply, envelope)
