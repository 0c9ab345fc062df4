"""What a session is, without any I/O: requests become packets, packets become answers.

Guarantees: memory that a request named (inputs taken by reference, regions for its outputs) stays reserved until the
router's final answer to that request, also when the caller stopped waiting. The router gives exactly one final answer
per request, after the worker answered or its slot was destroyed; so a late writer can never reach memory in new use.
"""

import itertools
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bedsit.ipc import wire
from bedsit.ipc.arena import NUMPY_DTYPES, Arena, Span
from bedsit.ipc.door import ModelInfo
from bedsit.ipc.errors import BedsitError, error
from bedsit.ipc.manifest import TensorSpec
from bedsit.ipc.wire import INLINE_BYTES, Kind, Place, Region, TensorRef

Result = dict[str, NDArray[Any]]
_GUESS_FREE_DIM: Final = 1
_LAST_NS: Final = (1 << 63) - 1


@dataclass(slots=True)
class Pending:
    """A request in flight and, once *done*, its answer."""

    id: int
    spans: dict[str, Span]
    kept: list[Any] = field(default_factory=list)
    done: bool = False
    withdrawn: bool = False
    result: Result | None = None
    failure: BedsitError | None = None
    waiter: Any = None

    def take(self) -> Result:
        """The answer; raises it when it is an error. Only when *done*."""
        if self.failure is not None:
            raise self.failure
        if self.result is None:
            raise error("internal", "asked for an answer that is not there")
        return self.result


class Session:
    """The state of one session over one arena. Not thread-safe."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self._ids = itertools.count(1)
        self._pending: dict[int, Pending] = {}
        self._needed: dict[tuple[int, int], dict[str, int]] = {}  # output sizes that a guess missed, by model

    def begin(
        self, info: ModelInfo, version: int | None, inputs: Mapping[str, Any], deadline_ns: int
    ) -> tuple[Pending, bytes]:
        """Write the inputs where they travel and reserve the outputs. Raises ``input.invalid``, ``arena.full``."""
        arrays = _check_inputs(info.manifest.inputs, inputs)
        pending = Pending(next(self._ids), {})
        tensors, body = self._place(arrays, pending)
        regions = self._reserve(info, arrays, pending)
        packet = wire.pack_packet(
            Kind.REQUEST,
            pending.id,
            wire.encode_request(tensors, regions),
            body,
            model=info.number,
            model_version=version or 0,
            deadline_ns=deadline_ns,
            arena=self.arena.number,
        )
        self._pending[pending.id] = pending
        return pending, packet

    def withdraw(self, pending: Pending) -> bytes:
        """Stop waiting. Its memory stays reserved until the final answer. Gives the CANCEL packet to send."""
        pending.waiter = None
        pending.withdrawn = True
        return wire.pack_packet(Kind.CANCEL, pending.id)

    def forget(self, pending: Pending) -> None:
        """The request never left this process: free what it held."""
        self._pending.pop(pending.id, None)

    def accept(self, packet: bytes) -> Pending | None:
        """Take a packet from the router: the request that it finishes, or None when nobody knows it."""
        envelope = wire.read_envelope(packet)
        pending = self._pending.pop(envelope.id, None)
        if pending is None:
            return None
        try:
            if pending.withdrawn:  # whoever still holds it (a traceback, say) must not hold the memory with it
                pending.failure = error("request.cancelled", "the caller withdrew the request")
            elif envelope.kind == Kind.RESPONSE:
                pending.result = self._read_outputs(packet, envelope, pending)
            elif envelope.kind == Kind.ERROR:
                pending.failure = wire.decode_error(packet, envelope)
            else:
                pending.failure = error("wire.malformed", f"the router sent a packet of kind {envelope.kind}")
        except BedsitError as e:
            pending.failure = e
        pending.done = True
        pending.kept.clear()
        pending.spans = {}
        return pending

    def learn_sizes(self, info: ModelInfo, failure: BedsitError) -> bool:
        """Remember from ``output.too_small`` what the outputs need; True when a second try can differ."""
        needed = failure.detail.get("needed")
        if not isinstance(needed, Mapping) or not all(type(n) is int and n >= 0 for n in needed.values()):
            return False
        known = self._needed.setdefault((info.number, info.version), {})
        names = [spec.name for spec in info.manifest.outputs]
        grown = {name: needed[name] for name in names if needed.get(name, 0) > known.get(name, 0)}
        known.update(grown)
        return bool(grown)

    def fail_all(self, failure: BedsitError) -> list[Pending]:
        """The router is gone: every request in flight ends with *failure*."""
        ended = list(self._pending.values())
        self._pending.clear()
        for pending in ended:
            pending.failure, pending.done = failure, True
        return ended

    def in_flight(self) -> int:
        """Requests without a final answer, withdrawn ones included."""
        return len(self._pending)

    def _place(self, arrays: list[tuple[TensorSpec, NDArray[Any]]], pending: Pending) -> tuple[list[TensorRef], bytes]:
        tensors: list[TensorRef] = []
        body = bytearray()
        for spec, array in arrays:
            nbytes = array.nbytes
            found = self.arena.find(array) if array.flags.c_contiguous else None
            if found is not None:
                span, offset = found
                pending.kept.append(array)
                place = Place.ARENA
            elif nbytes + len(body) <= INLINE_BYTES:
                place, offset = Place.INLINE, len(body)
                body += array.tobytes()
                body += bytes(-len(body) % wire.ALIGNMENT)
            else:
                span = self.arena.reserve(nbytes)
                span.view(spec.dtype, array.shape)[...] = array
                pending.kept.append(span)
                place, offset = Place.ARENA, span.offset
            tensors.append(TensorRef(spec.name, spec.dtype, array.shape, place, offset, nbytes))
        return tensors, bytes(body)

    def _reserve(
        self, info: ModelInfo, arrays: list[tuple[TensorSpec, NDArray[Any]]], pending: Pending
    ) -> list[Region]:
        needed = self._needed.get((info.number, info.version), {})
        sizes = {spec.name: max(needed.get(spec.name, 0), _guess_bytes(spec, arrays)) for spec in info.manifest.outputs}
        if sum(-(-n // wire.ALIGNMENT) * wire.ALIGNMENT for n in sizes.values()) <= INLINE_BYTES:
            return []
        regions = []
        for name, nbytes in sizes.items():
            span = pending.spans[name] = self.arena.reserve(nbytes)
            regions.append(Region(name, span.offset, span.capacity))
        return regions

    def _read_outputs(self, packet: bytes, envelope: wire.Envelope, pending: Pending) -> Result:
        result: Result = {}
        body = wire.body_of(packet, envelope)
        for ref in wire.decode_response(packet, envelope):
            if ref.place == Place.ARENA:
                span = pending.spans.get(ref.name)
                # The worker may only point at the start of what this client reserved for this output.
                if span is None or ref.offset != span.offset or ref.nbytes > span.capacity:
                    raise error("output.invalid", f"output {ref.name!r} lies outside of the region reserved for it")
                result[ref.name] = span.view(ref.dtype, ref.shape)
            else:
                if ref.offset + ref.nbytes > len(body):
                    raise error("output.invalid", f"output {ref.name!r} lies outside of its packet")
                kind = NUMPY_DTYPES[ref.dtype]
                flat = np.frombuffer(body, kind, ref.nbytes // kind.itemsize, ref.offset)
                result[ref.name] = flat.reshape(ref.shape)
        return result


def deadline_after(timeout_s: float | None) -> int:
    """The deadline *timeout_s* from now in nanoseconds of CLOCK_MONOTONIC, 0 for none."""
    if timeout_s is None:
        return 0
    if not timeout_s >= 0:  # also NaN
        raise error("request.invalid", f"timeout_s is {timeout_s}", "seconds from now, or None to wait for ever")
    return min(time.monotonic_ns() + int(min(timeout_s, _LAST_NS / 1e9) * 1e9), _LAST_NS)


def _check_inputs(specs: tuple[TensorSpec, ...], inputs: Mapping[str, Any]) -> list[tuple[TensorSpec, NDArray[Any]]]:
    names = {spec.name for spec in specs}
    for name in inputs:
        if name not in names:
            known = ", ".join(map(str, specs))
            raise error("input.invalid", f"the model has no input {name!r}", f"its inputs: {known}")
    arrays = []
    for spec in specs:
        if spec.name not in inputs:
            raise error("input.invalid", f"input {spec.name!r} is missing", f"the model takes {spec}")
        array, dtype = _as_array(inputs[spec.name], spec)
        if not spec.admits(dtype, array.shape):
            raise error(
                "input.invalid",
                f"input {spec.name!r} is {dtype}{list(array.shape)}",
                f"the model takes {spec}",
            )
        arrays.append((spec, array))
    return arrays


def _as_array(value: Any, spec: TensorSpec) -> tuple[NDArray[Any], str]:
    torch = sys.modules.get("torch")  # a caller who has tensors has torch loaded; this module never loads it
    if torch is not None and isinstance(value, torch.Tensor):
        value = value.detach()
        if value.device.type != "cpu":
            raise error("input.invalid", f"input {spec.name!r} is on {value.device}", "move it to the CPU first")
        if value.dtype is torch.bfloat16:
            return value.contiguous().view(torch.uint16).numpy(), "bfloat16"
        array = value.numpy()
    elif isinstance(value, np.ndarray):
        array = value
    else:
        raise error("input.invalid", f"input {spec.name!r} is a {type(value).__name__}", "pass an array or a tensor")
    name = array.dtype.name
    if not array.dtype.isnative:
        raise error("input.invalid", f"input {spec.name!r} is not in native byte order")
    # bfloat16 has no numpy type: uint16 holds its bits.
    return array, "bfloat16" if spec.dtype == "bfloat16" and name == "uint16" else name


def _guess_bytes(spec: TensorSpec, arrays: list[tuple[TensorSpec, NDArray[Any]]]) -> int:
    """What an output will take if each free dimension is as long as the inputs' dimension of the same position."""
    shape = []
    for position, dim in enumerate(spec.shape):
        if dim < 0:
            free = [a.shape[position] for s, a in arrays if position < a.ndim and s.shape[position] < 0]
            shape.append(max(free, default=_GUESS_FREE_DIM))
        else:
            shape.append(dim)
    return wire.count_bytes(spec.dtype, shape)
