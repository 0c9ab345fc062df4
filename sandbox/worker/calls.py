"""From requests to answers: one request at a time, or a batch of them in one call of the model.

Guarantees: whatever the model or a packet does, each request gets one answer, under its own id. A batch is answered as
if each request had come alone: when the model fails on a batch, or its outputs cannot be told apart, each request runs
by itself, and only those that fail alone fail.
"""

import contextlib
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import torch

from bedsit.ipc import wire
from bedsit.ipc.errors import CODES, BedsitError, error
from bedsit.ipc.wire import ENVELOPE_BYTES, Kind, Region
from bedsit.sandbox.worker.arenas import ArenaTable, Mapped
from bedsit.sandbox.worker.lanes import Order
from bedsit.sandbox.worker.runners import Runner
from bedsit.sandbox.worker.stack import Stack
from bedsit.sandbox.worker.tensors import Inline, Place, find_places, tensor_at, view, write_to_regions
from bedsit.sandbox.worker.turns import Turns

Models = Mapping[tuple[int, int], Runner]

_MAX_MESSAGE: Final = 2000
_MAX_ERROR: Final = 32 << 10  # as msgpack; the detail of output.too_small, 32 numbers, is the longest of ours
_REMEMBERED: Final = 256
#: The codes that a worker may report. The tenant's code may raise our classes, too; what says something of the box, of
#: the router or of other tenants is not its to say.
_OWN: Final = frozenset(
    {
        *("bundle.invalid", "input.invalid", "internal", "model.failed", "model.load_failed", "model.not_found"),
        *("output.invalid", "output.too_small", "request.cancelled", "wire.malformed"),
    }
)
_RESPONSE: Final = int(Kind.RESPONSE)


class _Plan(NamedTuple):
    """What requests with the same header have in common, checked once."""

    model: "_Model"
    places: tuple[Place, ...]
    regions: tuple[Region, ...]


#: A request that is ready to run.
_Call = tuple[Order, _Plan, Mapped | None, list[torch.Tensor]]


class _Model:
    """A loaded model, and how its outputs travel."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.run = runner.run
        self.lend = runner.rooms.lend
        self.manifest = runner.manifest
        self.inline = Inline(runner.manifest.outputs)


class Calls:
    """Runs requests on *models*, with the arenas that this worker has mapped, when it is its turn."""

    def __init__(self, models: Models, arenas: ArenaTable, turns: Turns) -> None:
        self._turns = turns
        self._models = {key: _Model(runner) for key, runner in models.items()}
        self._find_arena = arenas.find
        self._plans: dict[tuple[int, int, int, int, bytes], _Plan] = {}

    def answer(self, orders: Sequence[Order], is_cancelled: Callable[[Order], bool]) -> None:
        """Answer all of a batch when it is its turn. Its requests are for one model; the router sees to that.

        They are read before, so that nothing is left to do but to run when the turn begins.
        """
        calls: list[_Call] = []
        refused: list[tuple[Order, bytes]] = []
        for order in orders:
            try:
                if is_cancelled(order):
                    raise _withdrawn()
                calls.append(self._prepare(order))
            except Exception as e:  # noqa: BLE001 - what is wrong with a packet is its sender's error, whatever it is
                refused.append((order, _refuse(order, e)))
        if calls:
            _reply(refused)
            refused = []
        # else they are all of the batch: it is over with its last answer, and so is the turn of whatever is behind it
        # if that comes before its own.
        if not self._turns.begin():
            return  # there is another router, which knows nothing of these
        if withdrawn := {call[0].fields[4] for call in calls if is_cancelled(call[0])}:  # while they waited
            refused = [(order, _refuse(order, _withdrawn())) for order in orders if order.fields[4] in withdrawn]
            calls = [call for call in calls if call[0].fields[4] not in withdrawn]
        end = self._turns.end
        if not calls:
            end()
            packets = []
        else:
            packets = [_run_one(calls[0], end)] if len(calls) == 1 else _run_many(calls, end)
        _reply(refused)
        for call, packet in zip(calls, packets, strict=True):
            call[0].reply(packet)

    def _prepare(self, order: Order) -> _Call:
        packet, fields, _ = order
        header_bytes = fields[8]
        raw = bytes(packet[ENVELOPE_BYTES : ENVELOPE_BYTES + header_bytes])
        key = (fields[9], fields[10], fields[13], fields[14], raw)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._make_plan(fields, raw)
            if len(self._plans) >= _REMEMBERED:
                self._plans.clear()
            self._plans[key] = plan
        arena = self._find_arena(fields[3])
        return order, plan, arena, [view(place, packet, arena) for place in plan.places]

    def _make_plan(self, fields: tuple[int, ...], raw: bytes) -> _Plan:
        model = self._models.get((fields[9], fields[10]))
        if model is None or fields[2] != Kind.REQUEST:
            raise error("model.not_found", "this worker has no such model")
        refs, regions = wire.decode_request(raw, fields[13], fields[14])
        return _Plan(model, find_places(model.manifest.inputs, refs, wire.body_at(len(raw))), regions)


def _reply(answers: Sequence[tuple[Order, bytes]]) -> None:
    for order, packet in answers:
        order.reply(packet)


def _withdrawn() -> BedsitError:
    return error("request.cancelled", "the caller withdrew the request")


def _run_one(call: _Call, end: Callable[[], None]) -> bytes:
    """The answer to one request. *end* is called when the model has run."""
    order, plan, arena, inputs = call
    model = plan.model
    try:
        if not plan.regions:
            return _pack(order, plan, arena, _run(model, inputs, end))
        model.lend(plan.regions, arena)
        try:
            return _pack(order, plan, arena, _run(model, inputs, end))
        finally:
            model.lend((), None)
    except Exception as e:  # noqa: BLE001 - the tenant's code may raise anything
        return _refuse(order, e)


def _run(model: _Model, inputs: Sequence[torch.Tensor], end: Callable[[], None]) -> Sequence[torch.Tensor]:
    try:
        return model.run(inputs)
    finally:
        end()


def _run_many(calls: list[_Call], end: Callable[[], None]) -> list[bytes]:
    """All of them in one call of the model where that is possible; else one by one."""
    model = calls[0][1].model
    policy = model.manifest.batch
    try:
        if policy is None or any(plan.model is not model for _, plan, _, _ in calls):
            raise error("internal", "these requests are no batch")
        stack = Stack([inputs for _, _, _, inputs in calls], policy.pad, _find_neighbours(calls))
        outputs = model.run(stack.inputs)
        shares = stack.split(outputs, model.manifest.outputs, model.manifest.inputs)
    except Exception:  # noqa: BLE001 - somebody's request spoils it for the others: each alone
        *first, last = calls
        return [*(_run_one(call, _go_on) for call in first), _run_one(last, end)]
    end()
    packets = []
    for (order, plan, arena, _), share in zip(calls, shares, strict=True):
        try:
            packets.append(_pack(order, plan, arena, share))
        except Exception as e:  # noqa: BLE001 - as above
            packets.append(_refuse(order, e))
    return packets


def _go_on() -> None:
    """More of the batch is to be run."""


def _pack(order: Order, plan: _Plan, arena: Mapped | None, outputs: Sequence[torch.Tensor]) -> bytes:
    if plan.regions and arena is not None:
        specs = plan.model.manifest.outputs
        header, body = write_to_regions(specs, outputs, plan.regions, arena, plan.places), b""
    else:
        header = plan.model.inline.find_header(outputs)
        body = plan.model.inline.collect(outputs)
    return wire.pack_tensors(_RESPONSE, order.fields[4], header, body, len(outputs))


def _find_neighbours(calls: Sequence[_Call]) -> list[torch.Tensor | None]:
    """For each input, one view of all requests' where they lie one behind the other in the same arena."""
    arena = calls[0][2]
    found: list[torch.Tensor | None] = []
    for column in zip(*(plan.places for _, plan, _, _ in calls), strict=True):
        first = column[0]
        rest, end = first.ref.shape[1:], first.offset
        for (_, _, of, _), place in zip(calls, column, strict=True):
            if not place.in_arena or of is not arena or place.offset != end or place.ref.shape[1:] != rest:
                found.append(None)
                break
            end += place.ref.nbytes
        else:
            rows = sum(place.ref.shape[0] for place in column)
            found.append(tensor_at(first.ref.dtype, (rows, *rest), first.offset, arena) if arena is not None else None)
    return found


def _refuse(order: Order, e: BaseException) -> bytes:
    return wire.pack_error(order.fields[4], as_failure(e, "model.failed", "the model raised"))


def as_failure(e: BaseException, code: str, what: str) -> BedsitError:
    """The error to report: short enough to travel, whatever was raised."""
    # One of ours goes as it is; one that the tenant's code raised may have anything in it.
    with contextlib.suppress(Exception):
        is_ours = isinstance(e, BedsitError) and e.code in _OWN and CODES[e.code] is type(e)
        if isinstance(e, BedsitError) and is_ours and len(wire.pack_error(0, e)) < _MAX_ERROR:
            return e
    with contextlib.suppress(Exception):  # the tenant's code may have closed it
        traceback.print_exc()  # into the tenant's own log
    try:
        text = f"{what}: {type(e).__name__}: {e}"[:_MAX_MESSAGE]
    except Exception:  # noqa: BLE001 - its __str__ raises
        text = f"{what}: {type(e).__name__}"
    return error(code, text.encode(errors="replace").decode(), "the traceback is in `bedsit logs`")
