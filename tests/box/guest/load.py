"""A client that asks the tiny model again and again, and knows the answers."""

import threading
import time
from types import TracebackType
from typing import Self

import numpy as np
from safetensors.numpy import load_file

from bedsit import BedsitError, Client
from tests.box.guest.check import PARCEL, wait_until

TENANT = "room"
_GAP_S = 0.002


class Load(threading.Thread):
    """Asks between enter and exit. Exit raises AssertionError when a request failed, or an answer was wrong."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.failures: list[str] = []
        self.answered = 0
        self.slowest_s = 0.0
        self._stop_asking = threading.Event()
        self._weights = load_file(PARCEL / "tiny" / "model.safetensors")

    def run(self) -> None:
        generator = np.random.default_rng(0)
        with Client(TENANT) as client:
            while not self._stop_asking.wait(_GAP_S):
                x = generator.standard_normal((2, 64), np.float32)
                began = time.monotonic()
                try:
                    y = client.infer("tiny", {"x": x}, timeout_s=30)["y"]
                except BedsitError as e:
                    self.failures.append(f"request {self.answered}: {e.code}: {e}")
                    continue
                self.slowest_s = max(self.slowest_s, time.monotonic() - began)
                if np.allclose(y, self._expect(x), atol=1e-4):
                    self.answered += 1
                else:
                    self.failures.append(f"request {self.answered}: wrong answer")

    def await_answers(self, count: int = 10, within_s: float = 60) -> None:
        """Block until *count* more requests were answered. Raises TimeoutError."""
        before = self.answered
        wait_until(lambda: self.failures or self.answered >= before + count, f"{count} more answers", within_s)

    def __enter__(self) -> Self:
        self.start()
        self.await_answers()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.await_answers()  # whatever was done to it: it is served again
        self._stop_asking.set()
        self.join()
        assert not self.failures, f"{len(self.failures)} of {self.answered} requests failed: {self.failures[:3]}"

    def _expect(self, x: np.ndarray) -> np.ndarray:
        hidden = np.maximum(x @ self._weights["0.weight"].T + self._weights["0.bias"], 0)
        return hidden @ self._weights["2.weight"].T + self._weights["2.bias"]
