"""What a slot is given while it is nobody's yet: limits, filters, and the nodes of the device that it is born for."""

import asyncio
from collections.abc import Awaitable
from typing import Final

from bedsit.ipc.errors import BedsitError, error
from bedsit.ipc.slot import Report, decode_report
from bedsit.sandbox.cgroup import Limits
from bedsit.sandbox.nodes import Node, find_nodes
from bedsit.sandbox.seccomp import compile_filter
from bedsit.supervisor.births import DEVICE_VARIABLE, Birth, NeedsOf
from bedsit.supervisor.log import get_log
from bedsit.supervisor.reports import clean_text, read_failure

#: The interpreter that a blank slot shares with the zygote needs a small part of it.
BLANK: Final = Limits(memory_bytes=256 << 20, pids_max=64, cpus=1.0)
#: With a CUDA context: 121 MiB and three threads are the driver's (docs/gpu), torch's libraries come on top.
BLANK_ON_DEVICE: Final = Limits(memory_bytes=2 << 30, pids_max=128, cpus=1.0)
#: A context takes 0.2 to 0.8 s, several at once too; the first on a card that slept takes longer.
_DEVICE_S: Final = 30.0
_MAX_NOTE: Final = 200


def limit_blank(birth: Birth) -> Limits:
    """What a slot may use that was born as this and is nobody's yet."""
    return BLANK_ON_DEVICE if birth.device else BLANK


def compile_filters(birth: Birth) -> dict[str, bytes]:
    """The filters of a slot's worker and init; none on a box without libseccomp, whose slots then lack that wall."""
    try:
        worker = compile_filter(birth.profile, has_device=bool(birth.device))
        return {"filter": worker, "init_filter": compile_filter("init")}
    except BedsitError as e:
        get_log().warning("seccomp.missing", error=str(e))
        return {}


async def find_device(birth: Birth, needs_of: NeedsOf, root: str) -> tuple[tuple[Node, ...], dict[str, str]]:
    """The nodes, as *root* shows them, and the variables of a slot that is born as this; none without a device.

    Raises BedsitError, with what to do, where the device is not known, is out of order, or lacks one of its nodes.
    """
    if not birth.device:
        return (), {}
    needs = await needs_of(birth.device)
    if not needs.device_nodes:
        raise error("device.degraded", f"device {birth.device} has no nodes that a slot could be given")
    return find_nodes(needs.device_nodes, root), {**needs.env, DEVICE_VARIABLE: birth.device}


async def await_device(word: Awaitable[bytes], device: str) -> str:
    """Wait for what the blank worker says of its device; gives what it lacks, if anything.

    Raises ``device.degraded`` unless the device works.
    """
    try:
        kind, _, text = decode_report(await asyncio.wait_for(word, _DEVICE_S))
    except TimeoutError:
        raise error("device.degraded", f"device {device} did not answer within {_DEVICE_S:g} s") from None
    if kind != Report.READY:
        raise error("device.degraded", read_failure(text).message, "what is wrong with it: bedsit device list")
    return clean_text(text[:_MAX_NOTE])
