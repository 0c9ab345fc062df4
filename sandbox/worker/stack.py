"""Several requests as one: their inputs on top of each other along the first dimension, and the outputs taken apart.

Inputs that lie one behind the other in memory already are one view; others are concatenated, which is the one copy of a
batch. Outputs are views. Where requests differ in another dimension the shorter ones are padded, if the model says with
what, and their outputs are cut to their own length again.
"""

from collections.abc import Sequence

import torch

from bedsit.ipc.errors import error
from bedsit.ipc.manifest import TensorSpec

Tensors = Sequence[torch.Tensor]


class Stack:
    """The inputs of *requests* stacked, as ``inputs``; *whole* has those that are one view already, else None.

    Raises ``input.invalid`` when requests differ in shape and *pad* is None, or the inputs of one differ in rows.
    """

    def __init__(
        self, requests: Sequence[Tensors], pad: float | None, whole: Sequence[torch.Tensor | None] | None = None
    ) -> None:
        self._rows = [_count_rows(inputs) for inputs in requests]
        self._shapes = [[tuple(tensor.shape) for tensor in inputs] for inputs in requests]
        columns: list[Tensors] = list(zip(*requests, strict=True))
        self._widest = [_find_widest(column) for column in columns]
        self._ragged = any(
            shape[1:] != widest for shapes in self._shapes for shape, widest in zip(shapes, self._widest, strict=True)
        )
        if self._ragged and pad is None:
            raise error("input.invalid", "the inputs of a batch differ in shape", "declare `pad` in [batch]")
        views = whole or [None] * len(columns)
        self.inputs = [
            view if view is not None else _pad(column, widest, pad or 0) if self._ragged else torch.cat(list(column))
            for view, column, widest in zip(views, columns, self._widest, strict=True)
        ]

    def split(
        self, outputs: Tensors, specs: Sequence[TensorSpec], taken: Sequence[TensorSpec]
    ) -> list[list[torch.Tensor]]:
        """Each request's part of each output; *taken* is what the model declares of its inputs.

        Raises ``output.invalid`` when an output has not as many rows as went in, or its padding cannot be taken off.
        """
        total = sum(self._rows)
        for output in outputs:
            if output.dim() == 0 or output.shape[0] != total:
                raise error("output.invalid", f"an output of a batch of {total} rows is {list(output.shape)}")
        shares, at = [], 0
        for rows, shapes in zip(self._rows, self._shapes, strict=True):
            parts = [output.narrow(0, at, rows) for output in outputs]
            if self._ragged:
                parts = [self._cut(part, spec, shapes, taken) for part, spec in zip(parts, specs, strict=True)]
            shares.append(parts)
            at += rows
        return shares

    def _cut(
        self, part: torch.Tensor, spec: TensorSpec, shapes: Sequence[tuple[int, ...]], taken: Sequence[TensorSpec]
    ) -> torch.Tensor:
        """Take the padding off: a free dimension as long as an input was padded to becomes as long as that was.

        Where two inputs are that long now and were not as long as each other, nobody can say which one it follows.
        """
        for position in range(1, part.dim()):
            if spec.shape[position] >= 0:
                continue
            lengths = {
                shape[position]
                for shape, widest, given in zip(shapes, self._widest, taken, strict=True)
                if position < len(shape) and given.shape[position] < 0 and part.shape[position] == widest[position - 1]
            }
            if len(lengths) > 1:
                raise error("output.invalid", "which input an output of a batch is as long as cannot be told")
            for length in lengths:
                part = part.narrow(position, 0, length)
        return part


def _count_rows(inputs: Tensors) -> int:
    rows = {tensor.shape[0] if tensor.dim() else -1 for tensor in inputs}
    if len(rows) != 1 or -1 in rows:
        raise error("input.invalid", "the inputs of a request differ in their first dimension")
    return rows.pop()


def _find_widest(column: Tensors) -> tuple[int, ...]:
    return tuple(max(dims) for dims in zip(*(tensor.shape[1:] for tensor in column), strict=True))


def _pad(column: Tensors, widest: tuple[int, ...], value: float) -> torch.Tensor:
    joined = column[0].new_full((sum(tensor.shape[0] for tensor in column), *widest), value)
    at = 0
    for tensor in column:
        part = joined.narrow(0, at, tensor.shape[0])
        for position, size in enumerate(tensor.shape[1:], start=1):
            part = part.narrow(position, 0, size)
        part.copy_(tensor)
        at += tensor.shape[0]
    return joined
