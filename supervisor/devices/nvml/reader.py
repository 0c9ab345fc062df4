"""What the driver and a GPU are, read anew each time. Only functions that read are called here.

What a card can do is found by asking for it, never by a version. Sources: NVML API reference; measured in docs/gpu.
"""

import ctypes
from pathlib import Path
from typing import Any, Final

import pynvml

from bedsit.supervisor.devices.cores import find_numa_node
from bedsit.supervisor.devices.model import Bare, Capability, MigMode, Placement, Process, Profile
from bedsit.supervisor.devices.nvml.calls import Calls
from bedsit.supervisor.devices.reports import (
    MAX_INSTANCES,
    MAX_PROCESSES,
    DriverReport,
    GpuReport,
    InstanceReport,
)

_MIB: Final = 1 << 20
#: More places than any GPU has for one profile.
_MOST_PLACEMENTS: Final = 32
#: CUDA cores in a multiprocessor, by compute capability (CUDA programming guide); NVML counts cores only.
_CORES_PER_SM: Final = {(7, 0): 64, (7, 2): 64, (7, 5): 64, (8, 0): 64}
_CORES_PER_SM_SINCE: Final = 128
_NO_INSTANCE: Final = 0xFFFFFFFF


class Reader:
    """Reads through *calls*. *handles* are those of the GPUs that were read, by UUID."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._is_open = False
        self._profiles: dict[str, tuple[Profile, ...]] = {}
        self.handles: dict[str, Any] = {}

    def read_driver(self) -> DriverReport:
        """Open NVML if that was not done, and count."""
        if not self._is_open:
            self._calls.ask("nvmlInit")
            self._is_open = True
        version = self._calls.ask("nvmlSystemGetDriverVersion")
        return DriverReport(version, self._calls.ask("nvmlDeviceGetCount"))

    def read_gpu(self, index: int) -> GpuReport:
        """One GPU with its MIG devices. Raises pynvml.NVMLError where it cannot be said what it is."""
        ask, attempt = self._calls.ask, self._calls.attempt
        handle = ask("nvmlDeviceGetHandleByIndex", index)
        uuid = ask("nvmlDeviceGetUUID", handle)
        modes = attempt("nvmlDeviceGetMigMode", handle)
        mig: MigMode = "unsupported" if modes is None else "on" if modes[0] else "off"
        if uuid not in self._profiles:  # a card's sizes do not change
            self._profiles[uuid] = () if modes is None else self._read_profiles(handle)
        # Before the devices in them: what somebody else is making now is not taken for one that was left half made.
        made = self._list_instances(handle, self._profiles[uuid]) if mig == "on" else ()
        instances = self._read_instances(handle) if mig == "on" else ()
        full = {instance.gpu_instance for instance in instances}
        processes = attempt("nvmlDeviceGetComputeRunningProcesses", handle) or []
        found = attempt("nvmlDeviceGetPciInfo", handle)
        pci = found.busId if found is not None else ""
        report = GpuReport(
            uuid=uuid,
            name=ask("nvmlDeviceGetName", handle),
            minor=ask("nvmlDeviceGetMinorNumber", handle),
            pci=pci,
            memory_bytes=ask("nvmlDeviceGetMemoryInfo", handle).total,
            sms=self._count_sms(handle),
            numa_node=find_numa_node(pci),
            mig=mig,
            mig_pending=modes is not None and modes[0] != modes[1],
            capabilities=self._find_capabilities(handle, has_mig=modes is not None),
            profiles=self._profiles[uuid],
            instances=instances,
            bare=tuple(each for each in made if each.gpu_instance not in full),
            processes=tuple(map(_read_process, processes[:MAX_PROCESSES])),
            processes_left_out=max(0, len(processes) - MAX_PROCESSES),
        )
        self.handles[uuid] = handle
        return report

    def read_processes(self, uuid: str) -> tuple[Process, ...]:
        """Who computes on a GPU now, those with the most memory first: whatever is left out, it is not they."""
        handle = self._calls.ask("nvmlDeviceGetHandleByUUID", uuid)
        found = map(_read_process, self._calls.ask("nvmlDeviceGetComputeRunningProcesses", handle))
        return tuple(sorted(found, key=lambda each: -(each.memory_bytes or 0))[:MAX_PROCESSES])

    def _count_sms(self, handle: Any) -> int | None:
        cores = self._calls.attempt("nvmlDeviceGetNumGpuCores", handle)
        version = self._calls.attempt("nvmlDeviceGetCudaComputeCapability", handle)
        if not cores or version is None:
            return None
        return int(cores) // _CORES_PER_SM.get(tuple(version), _CORES_PER_SM_SINCE)

    def _find_capabilities(self, handle: Any, *, has_mig: bool) -> tuple[Capability, ...]:
        attempt = self._calls.attempt
        found: list[Capability] = ["mig"] if has_mig else []
        if self._has_memory_limits(handle):
            found.append("memory_limits")
        gpm = attempt("nvmlGpmQueryDeviceSupport", handle)
        if gpm is not None and gpm.isSupportedDevice:
            found.append("gpm")
        if attempt("nvmlDeviceGetAccountingMode", handle):
            found.append("accounting")
        if (attempt("nvmlDeviceGetSupportedEventTypes", handle) or 0) & pynvml.nvmlEventTypeXidCriticalError:
            found.append("events")
        return tuple(found)

    def _has_memory_limits(self, handle: Any) -> bool:
        """Whether the driver tells the limit of our own cgroup; it needs cgroup2 at its usual place."""
        limits = getattr(pynvml, "c_nvmlGetMemoryLimits_v1_t", None)
        if limits is None:
            return False
        own = next((line[3:] for line in _read_lines("/proc/self/cgroup") if line.startswith("0::")), "/")
        # SAFETY: the binding hands on a reference to this structure, which outlives the call, and so does its text.
        asked = limits(nameSpace=f"/sys/fs/cgroup{own}".encode())
        try:
            self._calls.ask("nvmlDeviceGetMemoryLimits_v1", handle, asked)
        except pynvml.NVMLError as e:
            if e.value in (pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED):
                raise
            return False
        return True

    def _read_profiles(self, handle: Any) -> tuple[Profile, ...]:
        found = []
        for number in range(pynvml.NVML_GPU_INSTANCE_PROFILE_COUNT):
            info = self._calls.attempt("nvmlDeviceGetGpuInstanceProfileInfo", handle, number)
            if info is not None:
                placements = self._read_placements(handle, info.id)
                memory = info.memorySizeMB * _MIB
                name = info.name if isinstance(info.name, str) else info.name.decode()
                sms, most = info.multiprocessorCount, info.instanceCount
                found.append(Profile(info.id, name, info.sliceCount, memory, sms, most, placements))
        return tuple(found)

    def _read_placements(self, handle: Any, profile: int) -> tuple[Placement, ...]:
        # SAFETY: the binding hands both references on as they are; the count says how much room there is.
        room = (pynvml.c_nvmlGpuInstancePlacement_t * _MOST_PLACEMENTS)()
        count = ctypes.c_uint(_MOST_PLACEMENTS)
        references = ctypes.byref(room), ctypes.byref(count)
        if self._calls.attempt("nvmlDeviceGetGpuInstancePossiblePlacements", handle, profile, *references) is None:
            return ()
        return tuple(Placement(place.start, place.size) for place in room[: min(count.value, _MOST_PLACEMENTS)])

    def _list_instances(self, handle: Any, profiles: tuple[Profile, ...]) -> tuple[Bare, ...]:
        """All GPU instances, with or without a compute instance in them."""
        found = []
        for profile in profiles:
            # SAFETY: as above; there is room for as many as NVML says that there can be of this profile.
            room = (pynvml.c_nvmlGpuInstance_t * profile.count_max)()
            count = ctypes.c_uint(profile.count_max)
            if self._calls.attempt("nvmlDeviceGetGpuInstances", handle, profile.id, room, ctypes.byref(count)) is None:
                continue
            for instance in room[: min(count.value, profile.count_max)]:
                info = self._calls.attempt("nvmlGpuInstanceGetInfo", instance)
                if info is not None:  # it was destroyed meanwhile
                    found.append(Bare(info.id, profile.id, Placement(info.placement.start, info.placement.size)))
        return tuple(found[:MAX_INSTANCES])

    def _read_instances(self, handle: Any) -> tuple[InstanceReport, ...]:
        """The MIG devices; their indexes have holes."""
        count = min(self._calls.attempt("nvmlDeviceGetMaxMigDeviceCount", handle) or 0, MAX_INSTANCES)
        devices = (self._calls.attempt("nvmlDeviceGetMigDeviceHandleByIndex", handle, index) for index in range(count))
        return tuple(self._read_instance(handle, device) for device in devices if device is not None)

    def _read_instance(self, handle: Any, device: Any) -> InstanceReport:
        ask, attempt = self._calls.ask, self._calls.attempt
        attributes = ask("nvmlDeviceGetAttributes", device)
        number = ask("nvmlDeviceGetGpuInstanceId", device)
        instance = attempt("nvmlDeviceGetGpuInstanceById", handle, number)
        info = attempt("nvmlGpuInstanceGetInfo", instance) if instance is not None else None
        return InstanceReport(
            uuid=ask("nvmlDeviceGetUUID", device),
            name=ask("nvmlDeviceGetName", device),
            gpu_instance=number,
            compute_instance=ask("nvmlDeviceGetComputeInstanceId", device),
            memory_bytes=attributes.memorySizeMB * _MIB,
            sms=attributes.multiprocessorCount,
            profile=info.profileId if info is not None else None,
            placement=Placement(info.placement.start, info.placement.size) if info is not None else None,
        )


def _read_process(found: Any) -> Process:
    # The binding gives None where the driver does not tell the memory.
    instance = None if found.gpuInstanceId == _NO_INSTANCE else found.gpuInstanceId
    return Process(found.pid, found.usedGpuMemory, instance)


def _read_lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
