"""The attackers' clients: a process that asks an attacker to harm again and again, and counts what came of it."""

import asyncio
import contextlib
import json
import os
import select
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from bedsit.ipc.aclient import AsyncClient
from bedsit.ipc.admin import SOCKET_NAME, AdminClient
from bedsit.ipc.client import Client
from bedsit.ipc.errors import BedsitError
from bench.attackers.bundle.model import HARMS
from bench.processes import end, fork, reap

MODEL: Final = "attacker"
#: How long one request's harm lasts. A fork bomb needs longer to meet its limit.
_SLICE_MS: Final = 200
_BOMB_MS: Final = 1000
_OUTSTANDING: Final = 64
_READY_DEADLINE_S: Final = 20.0
#: What a round must have achieved to count: of all that was counted, this at least.
Counts = Mapping[str, float]


class Attack(NamedTuple):
    """One harm, how its tenant is made beyond the defaults, and what must be seen for it to have been there at all."""

    name: str
    happened: Callable[[Counts], bool]
    options: tuple[str, ...] = ()

    @property
    def tenant(self) -> str:
        """The attacker's name as a tenant."""
        return self.name.replace("_", "-")


ATTACKS: Final = (
    Attack("fork_bomb", lambda seen: seen["refused"] > 0, ("--profile", "subprocess", "--pids", "64")),
    Attack("memory_bomb", lambda seen: seen["ooms"] > 0, ("--memory", "512MiB")),
    Attack("cpu_spinner", lambda seen: seen["cpu_share"] > 0.1),
    Attack("log_flood", lambda seen: seen["tried"] > 1000),
    Attack("fd_flood", lambda seen: seen["refused"] > 0),
    Attack("tmp_filler", lambda seen: seen["refused"] > 0),
    Attack("request_flood", lambda seen: seen["tried"] > 100),
)


class Harm:
    """One attacker's client at work, from its construction until `stop`."""

    def __init__(self, attack: Attack, run_dir: Path) -> None:
        stop_in, self._stop = os.pipe()
        ready_in, ready_out = os.pipe()
        self._result, result_out = os.pipe()

        def work() -> None:
            os.close(self._stop)
            ask = _flood if attack.name == "request_flood" else _ask
            seen = ask(attack, run_dir, stop_in, lambda: os.close(ready_out))
            os.write(result_out, json.dumps(seen).encode())

        self._pid = fork(work)
        for fd in (stop_in, ready_out, result_out):
            os.close(fd)
        with os.fdopen(ready_in, "rb", buffering=0) as ready:
            if not select.select([ready], [], [], _READY_DEADLINE_S)[0]:
                self.stop()
                raise RuntimeError(f"{attack.name}: its client has not started")

    def stop(self) -> dict[str, int]:
        """Let the request under way end; gives what was counted. Raises RuntimeError when the client failed."""
        os.close(self._stop)
        try:
            with os.fdopen(self._result, "rb") as file:
                raw = file.read()
            if not reap(self._pid) or not raw:
                raise RuntimeError("an attacker's client failed; its words are above")
        finally:
            end(self._pid)
        seen: dict[str, int] = json.loads(raw)
        return seen


def _ask(attack: Attack, run_dir: Path, stop: int, ready: Callable[[], None]) -> Mapping[str, int]:
    """Ask for one slice of harm after the other. An attacker that died is started again, as an operator would."""
    seen = Counter(tried=0, refused=0, failed=0)
    order = np.array([list(HARMS).index(attack.name), _BOMB_MS if attack.name == "fork_bomb" else _SLICE_MS])
    admin = AdminClient(run_dir / SOCKET_NAME, timeout_s=60)
    with Client(attack.tenant, run_dir=str(run_dir)) as client:
        client.describe(MODEL)
        ready()
        while not _is_over(stop):
            try:
                tried, refused = client.infer(MODEL, {"order": order})["count"].tolist()
                seen.update(tried=tried, refused=refused)
            except BedsitError:
                seen["failed"] += 1
                with contextlib.suppress(BedsitError):
                    admin.call("tenant.start", name=attack.tenant)
    admin.close()
    return seen


def _flood(attack: Attack, run_dir: Path, stop: int, ready: Callable[[], None]) -> Mapping[str, int]:
    """Keep many requests outstanding that cost the attacker nothing."""
    seen = Counter(tried=0, refused=0, failed=0)
    order = np.array([list(HARMS).index(attack.name), 0])

    async def ask(client: AsyncClient) -> None:
        while not _is_over(stop):
            try:
                await client.infer(MODEL, {"order": order})
                seen["tried"] += 1
            except BedsitError:
                seen["failed"] += 1

    async def ask_all() -> None:
        async with AsyncClient(attack.tenant, run_dir=str(run_dir)) as client:
            await client.infer(MODEL, {"order": order})
            ready()
            await asyncio.gather(*(ask(client) for _ in range(_OUTSTANDING)))

    asyncio.run(ask_all())
    return seen


def _is_over(stop: int) -> bool:
    return bool(select.select([stop], [], [], 0)[0])
