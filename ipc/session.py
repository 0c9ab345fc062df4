"""What a session is, without any I/O: requests become packets, packets become answers.

Guarantees: memory that a request named (inputs taken by reference, regions for its outputs) stays reserved until the
router's final answer to that request, also when the caller stopped waiting. The router gives exactly one final answer
per request, after the worker answered or its slot was destroyed; so a late writer can never reach memory in new use.

Requests that look alike are prepared once: a plan, by the dtypes and shapes of the inputs, holds all that they have in
common. So are answers, by the bytes of their header.
"""

import itertools
import time
from collections.abc import Mapping
from copy import copy
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bedsit.ipc import wire
from bedsit.ipc.arena import NUMPY_DTYPES, Arena, Span
from bedsit.ipc.door import ModelInfo
from bedsit.ipc.errors import BedsitError, error
from bedsit.ipc.frames import MAX_ITEMS
from bedsit.ipc.manifest import TensorSpec
from bedsit.ipc.result import Result
from bedsit.ipc.tensors import as_array, as_torch
from bedsit.ipc.wire import ALIGNMENT, ENVELOPE_BYTES, INLINE_BYTES, MODELS_PRIORITY, Flag, Kind, Place, TensorRef

Tensors = Literal["numpy", "torch"]
Priority = Literal["low", "normal", "high"]
PRIORITIES: Final[Mapping[str | None, int]] = {None: MODELS_PRIORITY, "low": 0, "normal": 1, "high": 2}

_GUESS_FREE_DIM: Final = 1
_MAX_MESSAGE: Final = 500
_LAST_NS: Final = (1 << 63) - 1
_MOST_ROWS: Final = (1 << 32) - 1  # that an envelope can say; nobody batches so many
_REMEMBERED: Final = 256  # plans, and headers of answers
# As plain ints: looking up members of an enum shows in a profile.
_REQUEST: Final = int(Kind.REQUEST)
_RESPONSE: Final = int(Kind.RESPONSE)
_PINNED: Final = int(Flag.PINNED)
_ARENA: Final = int(Place.ARENA)


class Pending:
    """A request in flight and, once *done*, its answer. *waiter* is whatever the client wakes its caller with."""

    __slots__ = ("done", "failure", "id", "info", "kept", "outcome", "rooms", "sources", "waiter", "withdrawn")

    def __init__(self, ident: int, info: ModelInfo | None) -> None:
        self.id = ident
        self.info = info
        self.done = False
        self.withdrawn = False
        self.rooms: tuple[Span, ...] = ()  # where the outputs go
        self.sources: tuple[tuple[Span, int, int], ...] = ()  # where inputs lie in the arena: span, offset, bytes
        self.kept: tuple[Any, ...] = ()
        self.outcome: Any = None
        self.failure: BedsitError | None = None
        self.waiter: Any = None

    def take(self) -> Any:
        """The answer; raises it when it is an error. Only when *done*."""
        if self.failure is not None:
            raise self.failure
        if not self.done:
            raise error("internal", "asked for an answer that is not there")
        return self.outcome


class _Plan(NamedTuple):
    """What requests of one model with inputs of the same dtypes and shapes have in common.

    *header* is the whole of it where every input can travel inline; *rooms* are the bytes that each output needs, none
    where the outputs come inline; *pads* are the bytes between inline inputs.
    """

    header: bytes | None
    rooms: tuple[int, ...]
    pads: tuple[bytes, ...]
    rows: int


class _Output(NamedTuple):
    """An output of an answer that has been checked."""

    name: str
    ref: TensorRef
    kind: np.dtype[Any]


class Session:
    """The state of one session over one arena. Not thread-safe. *tensors*: what results are made of."""

    def __init__(self, arena: Arena, tensors: Tensors = "numpy") -> None:
        self.arena = arena
        self._tensors = tensors
        self._ids = itertools.count(1)
        self._pending: dict[int, Pending] = {}
        self._plans: dict[tuple[Any, ...], _Plan] = {}
        self._answers: dict[tuple[int, int, int, bytes], tuple[_Output, ...]] = {}
        self._needed: dict[tuple[int, int], tuple[int, ...]] = {}  # output sizes that a guess missed, by model

    def ask(self, question: Mapping[str, Any]) -> tuple[Pending, bytes]:
        """A question to the router itself; its answer is a map."""
        pending = Pending(next(self._ids), None)
        packet = wire.pack_map(Kind.ASK, pending.id, question)
        self._pending[pending.id] = pending
        return pending, packet

    def begin(
        self,
        info: ModelInfo,
        version: int | None,
        inputs: Mapping[str, Any],
        deadline_ns: int,
        priority: int = MODELS_PRIORITY,
    ) -> tuple[Pending, bytes]:
        """Write the inputs where they travel and reserve the outputs. Raises ``input.invalid``, ``arena.full``.

        *version* None means the model's default, which the client believes to be the one in *info*.
        """
        arrays, plan = self._prepare(info, inputs)
        ident = next(self._ids)
        pending = Pending(ident, info)
        header, body = plan.header, b""
        if header is not None and len(arrays) == 1 and arrays[0].base is None:
            body = arrays[0].tobytes()
        elif header is not None and not any(array.base is not None for array in arrays):
            body = _join(arrays, plan.pads)
        else:
            header, body = self._place(info.manifest.inputs, arrays, pending)
        for nbytes in plan.rooms:
            span = self.arena.reserve(nbytes)
            pending.rooms += (span,)
            header += wire.encode_region(span.offset, span.capacity)
        packet = wire.pack_tensors(
            _REQUEST,
            ident,
            header,
            body,
            len(arrays),
            len(plan.rooms),
            info.number,
            info.version,
            deadline_ns,
            self.arena.number,
            plan.rows,
            priority,
            _PINNED if version else 0,
        )
        self._pending[ident] = pending
        return pending, packet

    def withdraw(self, pending: Pending) -> bytes:
        """Stop waiting. Its memory stays reserved until the final answer. Gives the CANCEL packet to send."""
        pending.waiter = None
        pending.withdrawn = True
        return wire.pack_packet(Kind.CANCEL, pending.id)

    def forget(self, pending: Pending) -> None:
        """The request never left this process: free what it held."""
        self._pending.pop(pending.id, None)
        _finish(pending)

    def accept(self, packet: bytes) -> Pending | None:
        """Take a packet from the router: the request that it finishes, or None when nobody knows it."""
        fields = wire.read_fields(packet)
        kind = fields[2]
        pending = self._pending.pop(fields[4], None)
        if pending is None:
            return None
        try:
            if pending.withdrawn:  # whoever still holds it (a traceback, say) must not hold the memory with it
                pending.failure = error("request.cancelled", "the caller withdrew the request")
            elif kind == _RESPONSE and pending.info is not None:
                pending.outcome = self._read_outputs(packet, fields[8], fields[13], pending, pending.info)
            elif kind == Kind.TOLD and pending.info is None:
                # From the router itself: a list of models is as long as it is.
                pending.outcome = wire.read_map(packet, wire.read_envelope(packet), MAX_ITEMS)
            elif kind == Kind.ERROR:
                pending.failure = wire.decode_error(packet, wire.read_envelope(packet))
            else:
                pending.failure = error("wire.malformed", f"the router sent a packet of kind {kind}")
        except BedsitError as e:
            pending.failure = e
        except Exception as e:  # noqa: BLE001 - no torch, no memory: of who waits for it, not of who happens to read
            pending.failure = error("internal", f"the answer cannot be taken: {type(e).__name__}: {e}"[:_MAX_MESSAGE])
        _finish(pending)
        return pending

    def learn_sizes(self, info: ModelInfo, failure: BedsitError) -> bool:
        """Remember from ``output.too_small`` what the outputs need; True when a second try can differ."""
        needed = failure.detail.get("needed")
        count = len(info.manifest.outputs)
        if not isinstance(needed, list) or len(needed) != count or not all(type(n) is int and n >= 0 for n in needed):
            return False
        known = self._needed.get((info.number, info.version), (0,) * count)
        grown = tuple(map(max, known, needed))
        self._needed[info.number, info.version] = grown
        self._plans.clear()
        return grown != known

    def fail_all(self, failure: BedsitError) -> list[Pending]:
        """The router is gone: every request in flight ends with *failure*; each with its own, for its own traceback."""
        ended = list(self._pending.values())
        self._pending.clear()
        for pending in ended:
            pending.failure = copy(failure)
            _finish(pending)
        return ended

    def in_flight(self) -> int:
        """Requests without a final answer, withdrawn ones included."""
        return len(self._pending)

    def _prepare(self, info: ModelInfo, inputs: Mapping[str, Any]) -> tuple[list[NDArray[Any]], _Plan]:
        """The inputs as arrays in the declared order, and their plan."""
        specs = info.manifest.inputs
        if len(inputs) != len(specs):
            _refuse_names(specs, inputs)
        arrays: list[NDArray[Any]] = []
        key: list[Any] = [info.number, info.version]
        for spec in specs:
            value = inputs.get(spec.name)
            if type(value) is not np.ndarray:
                if value is None:
                    _refuse_names(specs, inputs)
                value = as_array(value, spec)
            arrays.append(value)
            key += (value.dtype, value.shape)
        plan = self._plans.get(tuple(key))
        if plan is None:
            checked = [as_array(array, spec) for array, spec in zip(arrays, specs, strict=True)]
            plan = self._make_plan(info, checked)
            if all(new is old for new, old in zip(checked, arrays, strict=True)):
                if len(self._plans) >= _REMEMBERED:
                    self._plans.clear()
                self._plans[tuple(key)] = plan
            arrays = checked
        return arrays, plan

    def _make_plan(self, info: ModelInfo, arrays: list[NDArray[Any]]) -> _Plan:
        specs = info.manifest.inputs
        for spec, array in zip(specs, arrays, strict=True):
            if array.dtype != NUMPY_DTYPES[spec.dtype] or not spec.admits(spec.dtype, array.shape):
                raise error(
                    "input.invalid",
                    f"input {spec.name!r} is {array.dtype.name}{list(array.shape)}",
                    f"the model takes {spec}",
                )
        needed = self._needed.get((info.number, info.version), (0,) * len(info.manifest.outputs))
        guessed = [_guess_bytes(spec, specs, arrays) for spec in info.manifest.outputs]
        rooms = tuple(map(max, needed, guessed))
        pads = tuple(bytes(-array.nbytes % ALIGNMENT) for array in arrays)
        header = b""
        at = 0
        for spec, array, pad in zip(specs, arrays, pads, strict=True):
            header += wire.encode_tensor(spec.dtype, array.shape, Place.INLINE, at)
            at += array.nbytes + len(pad)
        return _Plan(
            header=header if at <= INLINE_BYTES else None,
            rooms=() if sum(-(-n // ALIGNMENT) * ALIGNMENT for n in rooms) <= INLINE_BYTES else rooms,
            pads=pads,
            rows=min(arrays[0].shape[0], _MOST_ROWS) if info.manifest.batch is not None else 0,
        )

    def _place(
        self, specs: tuple[TensorSpec, ...], arrays: list[NDArray[Any]], pending: Pending
    ) -> tuple[bytes, bytes]:
        """Each input by reference where it lies in the arena, inline where it is small, else copied into the arena."""
        header, body = b"", bytearray()
        for spec, array in zip(specs, arrays, strict=True):
            found = self.arena.find(array) if array.flags.c_contiguous else None
            if found is not None:
                span, offset = found
                pending.kept += (array,)
                pending.sources += ((span, offset, array.nbytes),)
                place = Place.ARENA
            elif array.nbytes + len(body) <= INLINE_BYTES:
                place, offset = Place.INLINE, len(body)
                body += array.tobytes()
                body += bytes(-len(body) % ALIGNMENT)
            else:
                span = self.arena.reserve(array.nbytes)
                span.view(spec.dtype, array.shape)[...] = array
                pending.sources += ((span, span.offset, array.nbytes),)
                place, offset = Place.ARENA, span.offset
            header += wire.encode_tensor(spec.dtype, array.shape, place, offset)
        return header, bytes(body)

    def _read_outputs(
        self, packet: bytes, header_bytes: int, tensors: int, pending: Pending, info: ModelInfo
    ) -> Result:
        header = packet[ENVELOPE_BYTES : ENVELOPE_BYTES + header_bytes]
        key = (info.number, info.version, tensors, header)
        places = self._answers.get(key)
        if places is None:
            places = _check_answer(info, wire.decode_response(header, tensors))
            if len(self._answers) >= _REMEMBERED:
                self._answers.clear()
            self._answers[key] = places
        body: bytearray | None = None
        result = Result()
        as_tensors = self._tensors == "torch"
        for index, (name, ref, kind) in enumerate(places):
            if ref.place == _ARENA:
                span, skip = _find_output(name, ref, index, pending)
                if skip is None:
                    result.lend(name, span, ref.dtype, ref.shape, as_tensor=as_tensors)
                    continue
                array = span.view(ref.dtype, ref.shape, skip)
            else:
                if body is None:  # a copy that the caller may write to
                    body = bytearray(packet[wire.body_at(header_bytes) :])
                try:
                    array = np.ndarray(ref.shape, kind, body, ref.offset)
                except (TypeError, ValueError):
                    raise error("output.invalid", f"output {name!r} lies outside of its packet") from None
            result[name] = as_torch(array, ref.dtype) if as_tensors else array
        return result


def deadline_after(timeout_s: float | None) -> int:
    """The deadline *timeout_s* from now in nanoseconds of CLOCK_MONOTONIC, 0 for none."""
    if timeout_s is None:
        return 0
    if not timeout_s >= 0:  # also NaN
        raise error("request.invalid", f"timeout_s is {timeout_s}", "seconds from now, or None to wait for ever")
    return min(time.monotonic_ns() + int(min(timeout_s, _LAST_NS / 1e9) * 1e9), _LAST_NS)


def priority_of(name: Priority | None) -> int:
    """The number of a priority on the wire; None leaves it to the model. Raises ``request.invalid``."""
    try:
        return PRIORITIES[name]
    except (KeyError, TypeError):
        raise error("request.invalid", f"there is no priority {name!r}", "low, normal or high") from None


def _finish(pending: Pending) -> None:
    pending.done = True
    pending.rooms = pending.sources = pending.kept = ()


def _join(arrays: list[NDArray[Any]], pads: tuple[bytes, ...]) -> bytes:
    return b"".join(itertools.chain.from_iterable((a.tobytes(), pad) for a, pad in zip(arrays, pads, strict=True)))


def _refuse_names(specs: tuple[TensorSpec, ...], inputs: Mapping[str, Any]) -> None:
    """Raises ``input.invalid`` for the first name that should not be there, or is not."""
    known = ", ".join(map(str, specs))
    for name in inputs:
        if name not in {spec.name for spec in specs}:
            raise error("input.invalid", f"the model has no input {name!r}", f"its inputs: {known}")
    for spec in specs:
        if inputs.get(spec.name) is None:
            raise error("input.invalid", f"input {spec.name!r} is missing", f"the model takes {known}")


def _check_answer(info: ModelInfo, refs: tuple[TensorRef, ...]) -> tuple[_Output, ...]:
    """The rows of an answer, which are what the model declares in number, dtype and shape; else ``output.invalid``."""
    specs = info.manifest.outputs
    if len(refs) != len(specs):
        raise error("output.invalid", f"the worker gave {len(refs)} outputs, declared are {len(specs)}")
    for spec, ref in zip(specs, refs, strict=True):
        if not spec.admits(ref.dtype, ref.shape):
            raise error("output.invalid", f"output {spec.name!r} is {ref.dtype}{list(ref.shape)}", f"declared: {spec}")
    return tuple(_Output(spec.name, ref, NUMPY_DTYPES[ref.dtype]) for spec, ref in zip(specs, refs, strict=True))


def _find_output(name: str, ref: TensorRef, index: int, pending: Pending) -> tuple[Span, int | None]:
    """Where an output in the arena lies: at the start of the room reserved for it, or so many bytes into a span.

    The span is that of an input, and all of the output inside of that input. Anything else that a worker points at is
    refused.
    """
    if pending.rooms:
        room = pending.rooms[index]
        if ref.offset == room.offset and ref.nbytes <= room.capacity:
            return room, None
    if ref.offset % NUMPY_DTYPES[ref.dtype].itemsize == 0:
        for span, start, nbytes in pending.sources:
            if start <= ref.offset and ref.offset + ref.nbytes <= start + nbytes:
                return span, ref.offset - span.offset
    raise error("output.invalid", f"output {name!r} lies outside of the memory of its request")


def _guess_bytes(spec: TensorSpec, inputs: tuple[TensorSpec, ...], arrays: list[NDArray[Any]]) -> int:
    """What an output will take if each free dimension is as long as the inputs' dimension of the same position."""
    shape = []
    for position, dim in enumerate(spec.shape):
        if dim < 0:
            free = [
                array.shape[position]
                for given, array in zip(inputs, arrays, strict=True)
                if position < array.ndim and given.shape[position] < 0
            ]
            shape.append(max(free, default=_GUESS_FREE_DIM))
        else:
            shape.append(dim)
    return wire.count_bytes(spec.dtype, shape)
