"""Events of the driver, waited for in a thread: Xids, memory errors, MIG changes."""

import ctypes
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
import pynvml

from bedsit.supervisor.devices.nvml.calls import Calls
from bedsit.supervisor.devices.reports import Happening, Refusal, to_wire

#: A bounded wait, so that a thread that is not needed any more ends.
_WAIT_MS: Final = 1000
_REST_S: Final = 1.0
_NO_INSTANCE: Final = 0xFFFFFFFF
#: What somebody has to know of: not a corrected bit, but a storm of them. An older binding lacks some of the names.
_WANTED: Final = (
    "nvmlEventTypeXidCriticalError",
    "nvmlEventTypeDoubleBitEccError",
    "nvmlEventTypeSingleBitEccErrorStorm",
    "nvmlEventTypeDramRetirementEvent",
    "nvmlEventTypeDramRetirementFailure",
    "nvmlEventTypeNonFatalPoisonError",
    "nvmlEventTypeFatalPoisonError",
    "nvmlEventTypeGpuUnavailableError",
    "nvmlEventMigConfigChange",
)


class Listener:
    """One set of events, of all GPUs that are known when it begins. *offer* takes a packet, or says that it cannot."""

    def __init__(self, calls: Calls, offer: Callable[[dict[str, Any]], bool]) -> None:
        self._calls = calls
        self._offer = offer
        self._is_over = threading.Event()
        self._uuids: dict[int | None, str] = {}
        self._dropped = 0

    def listen(self, handles: Mapping[str, Any]) -> list[str]:
        """Begin; the UUIDs of those that will be heard of. Raises pynvml.NVMLError where there are no events at all."""
        events = self._calls.ask("nvmlEventSetCreate")
        wanted = 0
        for name in _WANTED:
            wanted |= getattr(pynvml, name, 0)
        for uuid, handle in handles.items():
            has = self._calls.attempt("nvmlDeviceGetSupportedEventTypes", handle) or 0
            if has & wanted:
                self._calls.ask("nvmlDeviceRegisterEvents", handle, has & wanted, events)
                self._uuids[_address(handle)] = uuid
        if self._uuids:
            threading.Thread(target=self._wait, args=(events,), daemon=True).start()
        return list(self._uuids.values())

    def end(self) -> None:
        """Wait no more, within a second."""
        self._is_over.set()

    def _wait(self, events: Any) -> None:
        while not self._is_over.is_set():
            try:
                found = pynvml.nvmlEventSetWait(events, _WAIT_MS)
            except pynvml.NVMLError as e:
                if e.value != pynvml.NVML_ERROR_TIMEOUT:
                    self._tell(Happening(failed=Refusal(e.value, "nvmlEventSetWait", str(e))))
                    self._is_over.wait(_REST_S)  # it would fail again at once
                continue
            instance = None if found.gpuInstanceId == _NO_INSTANCE else found.gpuInstanceId
            uuid = self._uuids.get(_address(found.device), "")
            self._tell(Happening(uuid, found.eventType, found.eventData, instance))

    def _tell(self, happening: Happening) -> None:
        """Never waits: who does not read loses what is new, and is told how many."""
        event = to_wire(msgspec.structs.replace(happening, dropped=self._dropped))
        self._dropped = 0 if self._offer({"event": event}) else self._dropped + 1


def _address(handle: Any) -> int | None:
    """A handle as a number. NVML gives the same one for the same GPU each time."""
    return ctypes.cast(handle, ctypes.c_void_p).value
