"""Cuts a GPU: MIG instances are made and destroyed here. But for limits of memory (limiter.py) nothing else is changed.

An instance is two things of NVML's: a GPU instance, which has the memory and its place, and in it a compute instance,
which makes it a device. What was begun and refused half-way is undone before the refusal is told. Only the end of this
process in between leaves a half: a GPU instance that is bare, which the reader finds.

Traps of NVML: instances are made by a profile's *id* (19), not by its place in the enumeration (0); ids of instances
are given again, so who names one says what it takes it for; a handle is of no use once its instance is gone, so each
question begins with the GPU's UUID.
"""

import ctypes
from typing import Any

import pynvml

from bedsit.supervisor.devices.model import Placement
from bedsit.supervisor.devices.nvml.calls import Calls
from bedsit.supervisor.devices.nvml.halfdone import HalfDone


class Cutter:
    """Cuts through *calls*. All raise pynvml.NVMLError where it was refused and nothing has changed, else HalfDone."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def create(self, uuid: str, profile: int, place: Placement) -> int:
        """An instance of that profile at that place; the number of its GPU instance."""
        handle = self._calls.ask("nvmlDeviceGetHandleByUUID", uuid)
        # SAFETY: the binding hands the reference on as it is; the structure outlives the call.
        where = ctypes.byref(pynvml.c_nvmlGpuInstancePlacement_t(place.start, place.size))
        instance = self._calls.ask("nvmlDeviceCreateGpuInstanceWithPlacement", handle, profile, where)
        try:
            number = int(self._calls.ask("nvmlGpuInstanceGetInfo", instance).id)
            self._fill(instance)
        except pynvml.NVMLError as e:
            self._undo("a GPU instance without a compute instance stays", e, "nvmlGpuInstanceDestroy", instance)
            raise
        return number

    def finish(self, uuid: str, number: int, profile: int) -> int:
        """The compute instance of a GPU instance that has none."""
        self._fill(self._find(uuid, number, profile)[1])
        return number

    def destroy(self, uuid: str, number: int, profile: int) -> int:
        """A GPU instance of that profile with all that is in it. Refused while a process is."""
        handle, instance = self._find(uuid, number, profile)
        # The driver refuses that too, but compute instance by compute instance: the first might be gone by then.
        if any(
            each.gpuInstanceId == number for each in self._calls.ask("nvmlDeviceGetComputeRunningProcesses", handle)
        ):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_IN_USE)
        gone: list[int] = []
        try:
            for kind, count in self._list_kinds(instance):
                for compute in self._list_computes(instance, kind, count):
                    self._calls.ask("nvmlComputeInstanceDestroy", compute)
                    gone.append(kind)
            self._calls.ask("nvmlGpuInstanceDestroy", instance)
        except pynvml.NVMLError as e:
            for kind in gone:
                left = f"GPU instance {number} stays, without its compute instance"
                self._undo(left, e, "nvmlGpuInstanceCreateComputeInstance", instance, kind)
            raise
        return number

    def _find(self, uuid: str, number: int, profile: int) -> tuple[Any, Any]:
        """The handles of GPU and GPU instance. Not found where the number is another one's now."""
        handle = self._calls.ask("nvmlDeviceGetHandleByUUID", uuid)
        instance = self._calls.ask("nvmlDeviceGetGpuInstanceById", handle, number)
        if self._calls.ask("nvmlGpuInstanceGetInfo", instance).profileId != profile:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return handle, instance

    def _fill(self, instance: Any) -> None:
        """One compute instance that takes all of a GPU instance: one of the largest kind."""
        kinds = self._list_kinds(instance)
        if not kinds:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        self._calls.ask("nvmlGpuInstanceCreateComputeInstance", instance, kinds[0][0])

    def _list_kinds(self, instance: Any) -> list[tuple[int, int]]:
        """The profiles of compute instances that a GPU instance takes, the largest first: id, and how many fit."""
        found = []
        for number in range(pynvml.NVML_COMPUTE_INSTANCE_PROFILE_COUNT):
            shared = pynvml.NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED
            info = self._calls.attempt("nvmlGpuInstanceGetComputeInstanceProfileInfo", instance, number, shared)
            if info is not None:
                found.append((info.sliceCount, info.multiprocessorCount, info.id, info.instanceCount))
        return [(kind, count) for _, _, kind, count in sorted(found, key=lambda each: (-each[0], -each[1]))]

    def _list_computes(self, instance: Any, kind: int, count: int) -> list[Any]:
        # SAFETY: the binding hands both references on; there is room for as many as there can be of this kind.
        room = (pynvml.c_nvmlComputeInstance_t * count)()
        found = ctypes.c_uint(count)
        references = room, ctypes.byref(found)
        self._calls.ask("nvmlGpuInstanceGetComputeInstances", instance, kind, *references)
        return list(room[: min(found.value, count)])

    def _undo(self, left: str, cause: pynvml.NVMLError, name: str, *args: Any) -> None:
        """Take back what was done before *cause*; what is *left* is told where that is refused, too."""
        call = self._calls.last
        try:
            self._calls.ask(name, *args)
        except pynvml.NVMLError as e:
            raise HalfDone(f"{left}: {name}: {e}", call, cause) from cause
        self._calls.last = call
