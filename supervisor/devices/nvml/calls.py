"""Calls of NVML through NVIDIA's binding, each told before it is made."""

from collections.abc import Callable
from typing import Any, Final

import pynvml

#: What a driver or a card answers about something that it does not have, or that is not for us.
_ABSENT: Final = frozenset(
    {
        pynvml.NVML_ERROR_INVALID_ARGUMENT,
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_NO_PERMISSION,
        pynvml.NVML_ERROR_NOT_FOUND,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
    }
)


class Calls:
    """Makes calls. *tell* hears of each by its name before it is made."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self.last = ""

    def ask(self, name: str, *args: Any) -> Any:
        """What that function of the binding gives. Raises pynvml.NVMLError, also where the binding has no such one."""
        function = getattr(pynvml, name, None)  # names are ours, never from the wire
        if function is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        self.last = name
        self._tell(name)
        return function(*args)

    def attempt(self, name: str, *args: Any) -> Any:
        """The same, and None where there is no such thing here. Raises what says that something is broken."""
        try:
            return self.ask(name, *args)
        except pynvml.NVMLError as e:
            if e.value in _ABSENT:
                return None
            raise
