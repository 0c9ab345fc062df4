"""Which failures of a call are worth another try: what both clients agree on."""

from collections.abc import Callable
from typing import Final

from bedsit.ipc.door import ModelInfo
from bedsit.ipc.errors import BedsitError

Models = dict[tuple[str, int], ModelInfo]

_UNSENT: Final = 2  # times that a request may find the router gone before it has left
_TOLD: Final = 8  # times that it is sent again because an answer asks for it: a worker may say so for ever


class Trial:
    """The tries of one call. A request that may have run runs once more only where its model is idempotent."""

    def __init__(self) -> None:
        self._restarts = 0
        self._unsent = 0
        self._told = 0

    def may_try_again(
        self,
        failure: BedsitError,
        models: Models,
        key: tuple[str, int],
        learn_sizes: Callable[[ModelInfo, BedsitError], bool],
    ) -> bool:
        """Whether to call again, after what can be learnt from the failure has been. *key* is what was called."""
        info = models.get(key)
        match failure.code:
            case "model.moved":  # another version answers by now: ask which, and what it takes
                models.clear()
                self._told += 1
                return self._told <= _TOLD
            case "output.too_small":
                self._told += 1
                return info is not None and learn_sizes(info, failure) and self._told <= _TOLD
            case "router.unavailable":
                self._unsent += 1
                return self._unsent <= _UNSENT
            case "router.restarted":
                self._restarts += 1
                return self._restarts == 1 and (info is None or info.manifest.idempotent)
        return False
