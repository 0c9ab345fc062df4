"""What a call gives: the outputs by name, and the memory that they lie in."""

import weakref
from typing import Any, Final, NamedTuple, Self

from bedsit.ipc.arena import Span
from bedsit.ipc.errors import error
from bedsit.ipc.tensors import as_torch

_HELD: Final = "a view of {} is still in use"


class _Lent(NamedTuple):
    """An output that lies in the arena: how to make its array again."""

    span: "weakref.ref[Span]"
    dtype: str
    shape: tuple[int, ...]
    as_tensor: bool


class Result(dict[str, Any]):
    """Outputs by name: arrays (or tensors, where the client was asked for them) of the declared dtypes.

    Large ones are views of shared memory. It is given back by itself when the last view of it is gone; ``release``, and
    leaving a ``with`` block, give it back now, and say so when that is too early.
    """

    __slots__ = ("_lent",)

    def __init__(self) -> None:
        super().__init__()
        self._lent: dict[str, _Lent] | None = None

    def lend(self, name: str, span: Span, dtype: str, shape: tuple[int, ...], *, as_tensor: bool = False) -> None:
        """Add the output that lies at the start of *span*, as an array or as a torch tensor."""
        array = span.view(dtype, shape)
        self[name] = as_torch(array, dtype) if as_tensor else array
        if self._lent is None:
            self._lent = {}
        self._lent[name] = _Lent(weakref.ref(span), dtype, shape, as_tensor)

    def release(self) -> None:
        """Drop the outputs. Raises ``arena.in_use``, and keeps them, when one or a view of it is held elsewhere.

        An output that is a view of an input array is the caller's as long as that input is.
        """
        lent, self._lent = self._lent or {}, None
        others = {name: value for name, value in self.items() if name not in lent}
        self.clear()
        held = {name: span for name, loan in lent.items() if (span := loan.span()) is not None}
        if held:
            for name, span in held.items():
                _, dtype, shape, as_tensor = lent[name]
                self.lend(name, span, dtype, shape, as_tensor=as_tensor)
            self.update(others)
            failure = error("arena.in_use", _HELD.format(", ".join(held)), "drop every array made of it first")
            held.clear()
            del span  # whoever holds the traceback must not hold the memory with it
            raise failure

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        """What is copied or pickled becomes a plain dict: it has nothing to give back."""
        return dict, (dict(self),)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.release()
        else:
            self.clear()
