"""Zygote generations under systemd: each a unit ``bedsit-zygote@N.service`` with a delegated cgroup of its own.

Why not a child: the daemon's unit takes away what a zygote needs, and its end would be the end of all in its cgroup.
systemctl is called and not waited for in the loop; what it says goes into the error.
"""

import asyncio
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from bedsit.ipc.errors import BedsitError, error
from bedsit.sandbox.cgroup import CgroupBackend, delegated
from bedsit.supervisor.generations import Generations
from bedsit.supervisor.log import get_log

#: Holds the admin socket.
ADMIN_SOCKET: Final = "bedsitd.socket"
_BOOTED: Final = Path("/run/systemd/system")  # sd_booted(3)
_CALL_S: Final = 10.0
_LOOK_EVERY_S: Final = 1.0
_EMPTY_S: Final = 10.0
_TICK_S: Final = 0.02
_OVER: Final = frozenset({"inactive", "failed"})


def is_unit(environ: Mapping[str, str]) -> bool:
    """Whether systemd itself started this process, and not a parent that systemd started (systemd.exec(5))."""
    return environ.get("SYSTEMD_EXEC_PID") == str(os.getpid()) and _BOOTED.is_dir()


def unit_name(generation: int) -> str:
    """The unit of a generation."""
    return f"bedsit-zygote@{generation}.service"


async def call_systemctl(*words: str, timeout_s: float = _CALL_S) -> str:
    """Run systemctl; gives what it wrote. Raises ``internal`` with its words when it fails or takes too long."""
    command = " ".join(("systemctl", *words))
    try:
        process = await asyncio.create_subprocess_exec(
            "systemctl",
            "--no-ask-password",
            "--no-pager",
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    except OSError as e:
        raise error("internal", f"{command}: {e.strerror}") from e
    try:
        async with asyncio.timeout(timeout_s):
            output, _ = await process.communicate()
    except TimeoutError:
        raise error("internal", f"{command}: no answer within {timeout_s:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    text = output.decode(errors="replace").strip()
    if process.returncode:
        raise error("internal", f"{command}: {text or f'exit status {process.returncode}'}")
    return text


class UnitStarter:
    """Starts generations through systemd and keeps their groups. Fulfils Starter."""

    def __init__(self, generations: Generations, backend: CgroupBackend) -> None:
        self._generations = generations
        self._backend = backend
        self._look_at = 0.0

    async def start(self, generation: int) -> None:
        """As Starter says."""
        self._generations.save_group(generation, None)  # first: the number is used, whatever happens now
        self._look_at = time.monotonic() + _LOOK_EVERY_S
        await call_systemctl("start", "--no-block", unit_name(generation))

    async def failure(self, generation: int) -> str | None:
        """As Starter says; asks systemd once in a while."""
        if time.monotonic() < self._look_at:
            return None
        self._look_at = time.monotonic() + _LOOK_EVERY_S
        words = await call_systemctl("show", "--property=ActiveState,Result,Job", unit_name(generation))
        state = dict(line.split("=", 1) for line in words.splitlines() if "=" in line)
        if state.get("ActiveState") in _OVER and state.get("Job", "0") in ("", "0"):
            return f"its unit is {state['ActiveState']} ({state.get('Result', 'no result')})"
        return None

    async def abandon(self, generation: int) -> None:
        """As Starter says."""
        try:
            await call_systemctl("stop", "--no-block", unit_name(generation))
        except BedsitError as e:
            get_log().warning("zygote.left", generation=generation, error=str(e))

    def admit(self, generation: int, pid: int) -> None:
        """As Starter says."""
        group = delegated.find_group(pid)
        if group.name != unit_name(generation):
            raise error("internal", f"zygote {generation} is not a unit of its own: it runs in {group}")
        delegated.settle(group, pid)
        self._backend.use(group)
        self._generations.save_group(generation, group)

    async def sweep(self, living: set[int]) -> None:
        """As Starter says. The unit's own group is systemd's, and goes when nothing is below it."""
        for generation, group in self._generations.groups().items():
            if generation in living or delegated.list_slots(group):
                continue
            try:
                await self._remove(generation, group)
            except (BedsitError, OSError) as e:  # the others can be removed nevertheless
                get_log().error("generation.left_behind", generation=generation, error=str(e))

    async def _remove(self, generation: int, group: Path) -> None:
        delegated.kill(group)
        if not await _wait_empty(group):
            get_log().error("generation.unkillable", generation=generation, group=str(group))
            return
        delegated.remove(group)
        self._backend.leave(group)
        self._generations.forget_group(generation)

    def where_to_look(self, generation: int) -> str:
        """As Starter says."""
        return f"journalctl -u {unit_name(generation)}"


async def _wait_empty(group: Path) -> bool:
    deadline = time.monotonic() + _EMPTY_S
    while not delegated.is_empty(group):
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(_TICK_S)
    return True
