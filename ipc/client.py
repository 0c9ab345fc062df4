"""The synchronous client: what a program on the box uses to call a model."""

import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from bedsit.ipc.door import ModelInfo, read_model_info, read_model_list
from bedsit.ipc.errors import BedsitError, error
from bedsit.ipc.forks import generation
from bedsit.ipc.lane import LaneName
from bedsit.ipc.link import Link
from bedsit.ipc.manifest import Manifest
from bedsit.ipc.result import Result
from bedsit.ipc.session import Priority, Tensors, deadline_after, priority_of
from bedsit.ipc.trial import Trial

#: A router is back in a second, on a box that is out of breath in ten.
_RECONNECT_S: Final = 15.0
_RECONNECT_EVERY_S: Final = 0.02
_WINDOW: Final = 32


class Client:
    """A session with one tenant's models.

    Who may be *tenant*: whoever holds one of its keys, and uid 0 without a key. Connects at the first call. Any number
    of threads may call at once; a call waits for none of the others. After a fork the child must make its own client.

    *lane*: how requests travel, see `bedsit.ipc.lane`. *tensors*: ``torch`` for results that are CPU tensors, over the
    same memory. *spin_us*: look for an answer so long before sleeping, which saves the time that waking up takes where
    a core is free for it; 0, the default, sleeps at once.
    """

    def __init__(
        self,
        tenant: str | None = None,
        key: str | None = None,
        *,
        run_dir: str | None = None,
        lane: LaneName = "fast",
        tensors: Tensors = "numpy",
        spin_us: int = 0,
    ) -> None:
        self._tenant, self._key, self._run_dir = tenant, key, run_dir
        self._lane, self._tensors, self._spin_us = lane, tensors, spin_us
        self._generation = generation()
        self._connecting = threading.Lock()
        self._link: Link | None = None
        self._closed = False
        self._was_connected = False

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        version: int | None = None,
        timeout_s: float | None = 30.0,
        priority: Priority | None = None,
    ) -> Result:
        """Call *model* and return its outputs by name; blocks for at most *timeout_s* (None: for ever).

        Inputs are numpy arrays or CPU torch tensors with the dtypes and shapes that the model declares. Those made
        with ``empty`` are not copied. Large outputs are views of shared memory, valid for as long as they are
        referred to. Raises BedsitError: ``input.invalid``, ``model.not_found``, ``deadline.exceeded``, ``queue.full``,
        ``rate.limited``, ``model.failed``, ``worker.crashed``, ``router.unavailable`` and others of
        ``bedsit.ipc.errors``; a refusal that waiting may help has ``detail["retry_after_s"]``.

        A request whose router went away is sent again once where the model is idempotent (the default), else it ends
        in ``router.restarted``.
        """
        deadline_ns = deadline_after(timeout_s)
        urgency = priority_of(priority)
        trial: Trial | None = None
        while True:
            link = self._connect(deadline_ns)
            try:
                info = link.models.get((model, version or 0)) or self._describe(link, model, version, deadline_ns)
                result: Result = link.finish(link.begin(info, version, inputs, deadline_ns, urgency), deadline_ns)
            except BedsitError as e:
                trial = trial or Trial()
                if not trial.may_try_again(e, link.models, (model, version or 0), link.learn_sizes):
                    raise
            else:
                return result

    def infer_many(
        self,
        model: str,
        requests: Iterable[Mapping[str, Any]],
        *,
        version: int | None = None,
        timeout_s: float | None = 30.0,
        priority: Priority | None = None,
        window: int = _WINDOW,
    ) -> list[Result]:
        """Call *model* once for each of *requests*, with up to *window* of them under way; the results in their order.

        As if ``infer`` were called for each: *timeout_s* bounds all of them together. The first failure is raised after
        everything that was under way has been withdrawn.
        """
        if window < 1:
            raise error("request.invalid", f"a window of {window}", "at least 1")
        deadline_ns = deadline_after(timeout_s)
        results: list[Result] = []
        flying: deque[tuple[Mapping[str, Any], Link, Any]] = deque()
        urgency = priority_of(priority)
        try:
            for inputs in requests:
                while len(flying) >= window:
                    results.append(self._land(flying.popleft(), model, version, deadline_ns, priority))
                flying.append(self._launch(inputs, model, version, deadline_ns, urgency))
            while flying:
                results.append(self._land(flying.popleft(), model, version, deadline_ns, priority))
        finally:
            for _, link, pending in flying:
                if pending is not None:
                    link.withdraw(pending)
        return results

    def empty(self, shape: int | Sequence[int], dtype: str | np.dtype[Any] | type = "float32") -> NDArray[Any]:
        """An uninitialised array in this session's shared memory: as an input it is passed without a copy.

        Raises ``arena.full``. The memory is given back when the last view of the array is gone and no request
        uses it. ``torch.from_numpy`` of it is a tensor in the same memory, and passed without a copy too.
        """
        return self._connect(0).session.arena.empty(shape, dtype)

    def trim(self) -> None:
        """Give shared memory that was used and is free now back to the box; it is taken again when it is needed."""
        link = self._link
        if link is not None:
            link.session.arena.trim()

    def models(self) -> dict[str, list[int]]:
        """The tenant's models with their versions, the default one first."""
        deadline_ns = deadline_after(self._connect(0).answer_s)
        return read_model_list(self._ask({"op": "models"}, deadline_ns))

    def describe(self, model: str, version: int | None = None) -> Manifest:
        """What a model takes and gives. Raises ``model.not_found``."""
        link = self._connect(0)
        return self._describe(link, model, version, deadline_after(link.answer_s)).manifest

    def close(self) -> None:
        """End the session; calls of other threads end in ``request.cancelled``. Arrays handed out stay valid."""
        if self._is_the_parents():
            return
        with self._connecting:
            self._closed = True
            if self._link is not None:
                self._link.close(error("request.cancelled", "the client was closed"))
                self._link = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _launch(
        self, inputs: Mapping[str, Any], model: str, version: int | None, deadline_ns: int, priority: int
    ) -> tuple[Mapping[str, Any], Link, Any]:
        link = self._connect(deadline_ns)
        try:
            info = self._describe(link, model, version, deadline_ns)
            return inputs, link, link.begin(info, version, inputs, deadline_ns, priority)
        except BedsitError as e:
            if e.code not in ("router.restarted", "router.unavailable"):
                raise
            return inputs, link, None  # it never left: to be called anew when its turn comes

    def _land(
        self,
        flight: tuple[Mapping[str, Any], Link, Any],
        model: str,
        version: int | None,
        deadline_ns: int,
        priority: Priority | None,
    ) -> Result:
        inputs, link, pending = flight
        if pending is not None:
            try:
                result: Result = link.finish(pending, deadline_ns)
            except BedsitError as e:
                if not Trial().may_try_again(e, link.models, (model, version or 0), link.learn_sizes):
                    raise
            else:
                return result
        left_s = (deadline_ns - time.monotonic_ns()) / 1e9 if deadline_ns else None
        return self.infer(
            model, inputs, version=version, timeout_s=None if left_s is None else max(0.0, left_s), priority=priority
        )

    def _ask(self, question: dict[str, Any], deadline_ns: int) -> Any:
        """Put a question to the router; to the next one, where this one goes away meanwhile."""
        asked_again = False
        while True:
            link = self._connect(deadline_ns)
            try:
                return link.ask(question, deadline_ns)
            except BedsitError as e:
                if e.code not in ("router.restarted", "router.unavailable") or asked_again or self._closed:
                    raise
                asked_again = True

    def _describe(self, link: Link, model: str, version: int | None, deadline_ns: int) -> ModelInfo:
        key = (model, version or 0)
        info = link.models.get(key)
        if info is None:
            question = {"op": "describe", "model": model, "version": version or 0}
            info = link.models[key] = read_model_info(link.ask(question, deadline_ns))
        return info

    def _is_the_parents(self) -> bool:
        """Whether this process is a child of the one that made the client; then let go of the parent's connection."""
        if self._generation == generation():
            return False
        if self._link is not None:
            self._link.abandon()
        return True

    def _connect(self, deadline_ns: int) -> Link:
        link = self._link
        if link is not None and link.is_ours() and not link.is_over():
            return link
        if self._is_the_parents():
            raise error("request.invalid", "this client belongs to the parent process", "make a new one after a fork")
        left_s = max(0.0, (deadline_ns - time.monotonic_ns()) / 1e9) if deadline_ns else -1
        if not self._connecting.acquire(timeout=left_s):
            raise error("deadline.exceeded", "no connection in time", "raise timeout_s, or look at `bedsit ps`")
        try:
            if self._closed:
                raise error("request.invalid", "the client is closed")
            if self._link is not None and self._link.is_over():
                self._link.close(error("router.restarted", "the router went away before it answered"))
                self._link = None
            if self._link is None:
                self._link = self._open_link(deadline_ns)
                self._was_connected = True
            return self._link
        finally:
            self._connecting.release()

    def _open_link(self, deadline_ns: int) -> Link:
        """Connect. A router that was there before is restarting: try again until the deadline, or for a few seconds."""
        give_up_ns = time.monotonic_ns() + int(_RECONNECT_S * 1e9)
        if deadline_ns:
            give_up_ns = min(give_up_ns, deadline_ns)
        while True:
            try:
                return Link(
                    self._tenant,
                    self._key,
                    self._run_dir,
                    lane=self._lane,
                    tensors=self._tensors,
                    spin_us=self._spin_us,
                    deadline_ns=deadline_ns,
                )
            except BedsitError as e:
                is_restarting = self._was_connected or e.detail.get("restarting")
                if e.code != "router.unavailable" or not is_restarting or time.monotonic_ns() > give_up_ns:
                    raise
            time.sleep(_RECONNECT_EVERY_S)
