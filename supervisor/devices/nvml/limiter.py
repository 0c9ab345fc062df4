"""Limits how much of a GPU's memory the processes of a group may have: the second thing of a card that is changed.

A limit is set on a cgroup2 folder (driver 615 and later), to be the same soft and hard: only an MPS server would make
use of a difference. It is believed when it reads back as it was set; one that does not, or whose reading is refused, is
taken back before that is told. The driver's groups above keep what was reserved below them, so a soft limit is
taken back before its folder is removed.
"""

from typing import Any, Final

import pynvml

from bedsit.supervisor.devices.nvml.calls import Calls
from bedsit.supervisor.devices.nvml.halfdone import HalfDone

#: What memory of a card is handed out in (docs/gpu, T7): a limit in between would read back as another one.
_STEP_BYTES: Final = 2 << 20


class NotHeld(Exception):
    """The driver says that it set a limit, and reads back another one; there is none now."""

    def __init__(self, wanted: int, found: int) -> None:
        super().__init__(f"a limit of {wanted} bytes was set, and {found} reads back")


class Limiter:
    """Limits through *calls*.

    Both raise pynvml.NVMLError, or NotHeld, where nothing has changed, else HalfDone.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def limit(self, uuid: str, group: str, limit_bytes: int) -> int:
        """What is in *group* may have so much of the GPU, in whole steps, contexts included; the limit as it is now."""
        handle = self._calls.ask("nvmlDeviceGetHandleByUUID", uuid)
        most = limit_bytes // _STEP_BYTES * _STEP_BYTES
        self._set(handle, group, most, most)
        try:
            for found in self._read(handle, group):
                if found != most:
                    raise NotHeld(most, found)
        except (pynvml.NVMLError, NotHeld) as e:
            call = self._calls.last
            try:
                self._set(handle, group, 0, pynvml.NVML_DEVICE_MEMORY_LIMIT_MAX)
            except pynvml.NVMLError as undone:
                raise HalfDone(f"a limit on {group} may stay: {undone}", call, e) from e
            self._calls.last = call
            raise
        return most

    def lift(self, uuid: str, group: str) -> int:
        """Nothing is reserved for *group* any more, and nothing limited."""
        handle = self._calls.ask("nvmlDeviceGetHandleByUUID", uuid)
        self._set(handle, group, 0, pynvml.NVML_DEVICE_MEMORY_LIMIT_MAX)
        return 0

    def _set(self, handle: Any, group: str, soft: int, hard: int) -> None:
        kind = getattr(pynvml, "c_nvmlSetMemoryLimits_v1_t", None)
        if kind is None:  # a binding before 13.615
            raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        # SAFETY: the binding hands on a reference to this structure, which outlives the call, and so does its text.
        self._calls.ask("nvmlDeviceSetMemoryLimits_v1", handle, kind(group.encode(), soft, hard))

    def _read(self, handle: Any, group: str) -> tuple[int, int]:
        # SAFETY: as above.
        asked = pynvml.c_nvmlGetMemoryLimits_v1_t(nameSpace=group.encode())
        self._calls.ask("nvmlDeviceGetMemoryLimits_v1", handle, asked)
        return asked.softLimit, asked.hardLimit
