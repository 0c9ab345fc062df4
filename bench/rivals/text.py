"""Tensors as base64 in JSON, for servers that take no bytes from outside."""

from binascii import a2b_base64, b2a_base64

import numpy as np

from bench.rivals.http import Connection
from bench.rivals.models import Array


class TextCaller:
    """Calls a model whose request is one base64 text between *before* and *after*, and whose answer holds one too.

    The answer's text ends with the last quotation mark; *mark* is what stands before it.
    """

    def __init__(self, port: int, path: str, columns: int, *, before: bytes, after: bytes, mark: bytes) -> None:
        self._connection = Connection(port, path, {"Content-Type": "application/json"})
        self._columns = columns
        self._before, self._after, self._mark = before, after, mark

    def hold(self, x: Array) -> Array:
        """*x* itself: its text is made in each call."""
        return x

    def __call__(self, x: Array) -> Array:
        """Post the text; the answer's, decoded."""
        text = b2a_base64(x.data.cast("B"), newline=False)
        answer = bytes(self._connection.post(self._before, text, self._after))
        start = answer.index(self._mark) + len(self._mark)
        y = a2b_base64(memoryview(answer)[start : answer.index(b'"', start)])
        return np.frombuffer(y, np.float32).reshape(-1, self._columns if self._columns > 0 else x.shape[1])

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
