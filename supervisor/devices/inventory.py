"""What is known of the GPUs, folded from what the helper says. Pure: reports in, changes out; asks nobody, no clock.

A GPU is known by its UUID, or by its index as long as nobody could read that. It stays in the inventory when it fails:

| heard                                   | GPU                     | change told          |
|-----------------------------------------|-------------------------|----------------------|
| a report                                | as reported             | found, or recovered  |
| a refusal, a hang, the helper's end     | degraded, as seen last  | degraded             |
| an Xid or memory error that breaks it   | degraded until our end  | xid or ecc, degraded |
| another Xid or memory error             | as before               | xid or ecc           |
| not in the list any more                | degraded, as seen last  | gone                 |
| NVML as a whole refuses                 | all degraded            | degraded, for each   |
| a MIG device that is not there any more | without it              | gone                 |

What broke it is not forgotten when it answers again: only a reset mends that, and a reset needs this daemon's end.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from bedsit.supervisor.devices import faults
from bedsit.supervisor.devices.model import Box, Gpu, Slice, Trouble
from bedsit.supervisor.devices.nodes import name_cap_nodes, name_nodes
from bedsit.supervisor.devices.reports import DriverReport, GpuReport, Happening, InstanceReport
from bedsit.supervisor.devices.xids import Xid, explain_xid

ChangeKind = Literal["device.found", "device.degraded", "device.recovered", "device.gone", "device.xid", "device.ecc"]

#: nvmlEventType*, as nvml.h has them.
_XID: Final = 0x8
_MIG_CHANGED: Final = 0x100
_MEMORY: Final[Mapping[int, Xid]] = {
    0x2: Xid("a memory error that could not be corrected", breaks=True),
    0x200: Xid("a storm of corrected memory errors", breaks=False),
    0x400: Xid("a row or page of memory was taken out of use", breaks=False),
    0x800: Xid("a row or page of memory could not be taken out of use", breaks=True),
    0x1000: Xid("a program met poisoned memory and was ended", breaks=False),
    0x2000: Xid("poisoned memory was used: any program on the GPU may have wrong data", breaks=True),
    0x4000: Xid("the GPU is not available", breaks=True),
}
_REPAIR: Final = faults.RESET


@dataclass(frozen=True)
class Change:
    """Something to tell: what happened to which device."""

    kind: ChangeKind
    device: str
    text: str


@dataclass(frozen=True)
class _Known:
    """A GPU: its last report, why it could not be read since, and what broke it for good."""

    index: int
    report: GpuReport | None = None
    unread: Trouble | None = None
    broken: Trouble | None = None

    @property
    def trouble(self) -> Trouble | None:
        return self.broken or self.unread


class Inventory:
    """The GPUs. *cap_minors* are the numbers of the capability nodes, as the driver lists them now."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._driver = ""
        self._trouble: Trouble | None = None
        self.cap_minors: Mapping[str, int] = {}

    def open(self, driver: DriverReport) -> None:
        """NVML works."""
        self._driver, self._trouble = driver.version, None

    def fail(self, trouble: Trouble) -> list[Change]:
        """NVML does not work, and no GPU can be read."""
        self._trouble = trouble
        return [change for uuid in list(self._known) for change in self._degrade(uuid, trouble)]

    def see(self, index: int, report: GpuReport) -> list[Change]:
        """A GPU was read."""
        self._known.pop(_name(index), None)
        before = self._known.get(report.uuid)
        now = self._known[report.uuid] = _Known(index, report, None, before.broken if before else None)
        if before is None or before.report is None:
            return [Change("device.found", report.uuid, _describe(report))]
        changes = [] if not before.trouble or now.trouble else [Change("device.recovered", report.uuid, "it answers")]
        return [*changes, *_compare(before.report.instances, report.instances)]

    def miss(self, index: int, trouble: Trouble) -> list[Change]:
        """The GPU at *index* could not be read."""
        there = ((uuid, known) for uuid, known in self._known.items() if known.unread != faults.GONE)
        uuid = next((uuid for uuid, known in there if known.index == index), _name(index))
        self._known.setdefault(uuid, _Known(index))
        return self._degrade(uuid, trouble)

    def count(self, gpus: int, seen: set[str]) -> list[Change]:
        """All of *gpus* were asked, and those in *seen* answered: what is neither is not there any more."""
        changes = []
        for uuid, known in list(self._known.items()):
            is_asked = known.index < gpus and known.unread is not None
            if uuid in seen or is_asked or known.unread == faults.GONE:
                continue
            if known.report is None:
                del self._known[uuid]
                continue
            self._known[uuid] = replace(known, unread=faults.GONE)
            changes.append(Change("device.gone", uuid, faults.GONE.what))
        return changes

    def hear(self, happening: Happening) -> list[Change]:
        """The driver reported something by itself."""
        known = self._known.get(happening.uuid)
        fault = _explain(happening)
        if known is None or fault is None:
            return []
        where = "" if happening.gpu_instance is None else f", MIG instance {happening.gpu_instance}"
        is_xid = happening.type == _XID
        text = f"{f'Xid {happening.datum}: ' if is_xid else ''}{fault.meaning}{where}"
        told = [Change("device.xid" if is_xid else "device.ecc", happening.uuid, text)]
        if not fault.breaks or known.broken is not None:
            return told
        was = known.trouble
        self._known[happening.uuid] = replace(known, broken=Trouble(text, _REPAIR))
        return told if was else [*told, Change("device.degraded", happening.uuid, f"{text}; {_REPAIR}")]

    def box(self, cpus: tuple[Slice, ...]) -> Box:
        """Everything as it is known now."""
        gpus = sorted(self._make_gpus(), key=lambda gpu: gpu.index)
        return Box(cpus, tuple(gpus), self._driver if self._trouble is None else "", self._trouble)

    def _degrade(self, uuid: str, trouble: Trouble) -> list[Change]:
        known = self._known[uuid]
        self._known[uuid] = replace(known, unread=trouble)
        if known.trouble is not None:
            return []
        return [Change("device.degraded", uuid, f"{trouble.what}; {trouble.mend}")]

    def _make_gpus(self) -> Iterator[Gpu]:
        for uuid, known in self._known.items():
            report, trouble = known.report, known.trouble
            if report is None:
                yield Gpu(uuid, known.index, trouble=trouble)
            else:
                yield Gpu(
                    uuid=uuid,
                    index=known.index,
                    name=report.name,
                    minor=report.minor,
                    pci=report.pci,
                    memory_bytes=report.memory_bytes,
                    sms=report.sms,
                    numa_node=report.numa_node,
                    mig=report.mig,
                    mig_pending=report.mig_pending,
                    capabilities=report.capabilities,
                    profiles=report.profiles,
                    processes=report.processes,
                    slices=tuple(self._cut(report, trouble)),
                    bare=report.bare,
                    note=_note(report),
                    trouble=trouble,
                )

    def _cut(self, report: GpuReport, trouble: Trouble | None) -> Iterator[Slice]:
        """The GPU as a whole, or with MIG on what it was cut into: nothing else computes there then."""
        if report.mig == "on":
            for instance in report.instances:
                yield self._make_instance(report, instance, trouble)
            return
        yield Slice(
            id=report.uuid,
            kind="exclusive",
            name=report.name,
            memory_bytes=report.memory_bytes,
            fault_domain=report.uuid,
            gpu=report.uuid,
            minor=report.minor,
            sms=report.sms,
            numa_node=report.numa_node,
            nodes=name_nodes(report.minor),
            env={"CUDA_VISIBLE_DEVICES": report.uuid},
            capabilities=report.capabilities,
            trouble=trouble,
        )

    def _make_instance(self, report: GpuReport, instance: InstanceReport, trouble: Trouble | None) -> Slice:
        caps = name_cap_nodes(self.cap_minors, report.minor, instance.gpu_instance, instance.compute_instance)
        return Slice(
            id=instance.uuid,
            kind="mig",
            name=instance.name,
            memory_bytes=instance.memory_bytes,
            # Several compute instances may share a GPU instance: its memory, and its faults (MIG User Guide).
            fault_domain=f"{report.uuid}/gi{instance.gpu_instance}",
            gpu=report.uuid,
            minor=report.minor,
            sms=instance.sms,
            profile=instance.profile,
            placement=instance.placement,
            gpu_instance=instance.gpu_instance,
            compute_instance=instance.compute_instance,
            numa_node=report.numa_node,
            nodes=(*name_nodes(report.minor), *(caps or ())),
            env={"CUDA_VISIBLE_DEVICES": instance.uuid},
            capabilities=tuple(each for each in report.capabilities if each == "gpm"),
            trouble=trouble or (None if caps else faults.NO_CAPS),
        )


def _name(index: int) -> str:
    """What a GPU is called whose UUID nobody could read."""
    return f"gpu{index}"


def _compare(before: Iterable[InstanceReport], now: Iterable[InstanceReport]) -> Iterator[Change]:
    """Which MIG devices were made and destroyed: by an operator, by us, or by a reset, which leaves none.

    A UUID is not enough: a driver makes it of the numbers of the instances, and gives those again.
    """
    old, new = ({(each.uuid, each.name, each.placement) for each in instances} for instances in (before, now))
    for uuid, name, _ in old - new:
        yield Change("device.gone", uuid, f"{name} was destroyed")
    for uuid, name, _ in new - old:
        yield Change("device.found", uuid, name)


def _explain(happening: Happening) -> Xid | None:
    if happening.type == _XID:
        return explain_xid(happening.datum)
    return _MEMORY.get(happening.type)


def _note(report: GpuReport) -> str:
    if report.mig_pending:
        then = "off" if report.mig == "on" else "on"
        return f"MIG is {report.mig}, and will be {then} after the next reset of the GPU, or a reboot"
    if report.mig == "on" and not report.instances:
        return "MIG is on, and nothing is cut: bedsit device partition, or nvidia-smi mig -cgi, or turn MIG off"
    return ""


def _describe(report: GpuReport) -> str:
    cut = f"cut into {len(report.instances)}" if report.mig == "on" else "whole"
    return f"{report.name}, {report.memory_bytes >> 20} MiB, {cut}"
