"""Mixed traffic for a long time, and nothing left of it: ``python -m bench.soak --json F [--quick] [--minutes N]``.

Three tenants, each with an echoing, a negating and a batched model. Client processes ask for all of them in all ways
(inline and by reference, arrays made in the arena, many at once, asyncio, with priorities, on both lanes), give up in
the middle (timeouts, cancelled tasks) and are killed with SIGKILL at random, to be replaced. Every answer is compared
with what the model gives in the client's own process. Afterwards sessions, memory, descriptors and arenas of router and
workers are back where they were after the warm-up.
"""

import asyncio
import contextlib
import os
import random
import signal
import struct
import time
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bedsit.ipc.aclient import AsyncClient
from bedsit.ipc.client import Client
from bedsit.ipc.errors import BedsitError
from bench import report
from bench.models.mlp.make import make
from bench.processes import end, fork
from examples.box import Box

_MODELS: Final = Path(__file__).parent / "models"
_NAMES: Final = ("echo", "negate", "mlp")
_TENANTS: Final = ("t0", "t1", "t2")
_PER_TENANT: Final = 2
_TALLY: Final = struct.Struct("<QQQ")  # answers, wrong ones, errors that were not expected
_LIFE_S: Final = (1.0, 6.0)  # how long a client lives before it is killed
_SIZES: Final = (1, 16, 600, 5_000, 100_000, 1_000_000)
_SETTLE_S: Final = 20.0

#: What may happen to a request here without anything being wrong.
_EXPECTED: Final = frozenset({"deadline.exceeded", "queue.full", "request.cancelled", "arena.full", "rate.limited"})


class Level(NamedTuple):
    """What a process holds: descriptors, MiB that are its own, bytes of arenas that it has mapped or open."""

    fds: int
    rss_mib: float
    arena_bytes: int


def measure(quick: bool, minutes: float | None) -> dict[str, Any]:  # noqa: FBT001 - as in every benchmark
    """Warm up, read the levels, let them loose, read the levels again."""
    minutes = minutes or (0.5 if quick else 10.0)
    dice = random.Random(1)  # noqa: S311 - a seed, so that a run can be repeated
    with Box({"pool_size": 1}) as box, ExitStack() as stack:
        bundles = [_MODELS / "echo/bundle", _MODELS / "negate/bundle", make(box.folder / "mlp")]
        for tenant in _TENANTS:
            box.read("tenant", "create", tenant, "--memory", "2GiB", "--cpus", 1)
            for bundle in bundles:
                box.read("model", "deploy", tenant, bundle)
        pids = _find_pids(box)
        tally_in, tally_out = os.pipe()
        os.set_blocking(tally_in, False)
        _run_for(box, min(20.0, minutes * 20), dice, tally_out, stack)  # every cache is warm
        for tenant in _TENANTS:  # and every ZeroMQ socket is made, as it is with the first session that wants one
            with Client(tenant, run_dir=str(box.run_dir), lane="zmq") as client:
                client.infer("echo", {"x": np.zeros((1, 1), np.float32)})
        before = _settle(pids)
        total = _drain(tally_in)
        kills = _run_for(box, minutes * 60, dice, tally_out, stack)
        after = _settle(pids)
        done = _drain(tally_in)
        total = tuple(a + b for a, b in zip(total, done, strict=True))
        if _find_pids(box) != pids:
            raise RuntimeError("a worker or the router was replaced meanwhile: see `bedsit events`")
        walls = box.status()["walls"]
    return {
        "minutes": minutes,
        "requests": total[0],
        "wrong": total[1],
        "unexpected_errors": total[2],
        "clients_killed": kills,
        "rss_growth_mib": {name: round(after[name].rss_mib - before[name].rss_mib, 2) for name in before},
        "fd_growth": {name: after[name].fds - before[name].fds for name in before},
        "arena_leaked_bytes": max(0, sum(level.arena_bytes for level in after.values())),
        "walls": walls,
    }


def show(result: Mapping[str, Any]) -> None:
    """Print what was seen."""
    rows = [[name, growth, result["fd_growth"][name]] for name, growth in result["rss_growth_mib"].items()]
    report.print_table(["process", "RSS growth MiB", "descriptors more"], rows)
    print(
        f"{result['minutes']:g} minutes: {result['requests']:,} answers, {result['wrong']} of them wrong, "
        f"{result['unexpected_errors']} errors that should not be; {result['clients_killed']} clients killed; "
        f"{result['arena_leaked_bytes']} bytes of arenas left"
    )


def _run_for(box: Box, seconds: float, dice: random.Random, tally: int, stack: ExitStack) -> int:
    """Keep clients alive for so long, killing each after a while; gives how many were killed."""
    until = time.monotonic() + seconds
    alive: dict[int, tuple[float, str]] = {}
    kills = 0
    wanted = [tenant for tenant in _TENANTS for _ in range(_PER_TENANT)]
    stack.callback(_end_all, alive)
    while time.monotonic() < until:
        for tenant in wanted:
            if sum(of == tenant for _, of in alive.values()) < _PER_TENANT:
                seed = dice.randrange(1 << 30)
                pid = fork(partial(_be_client, str(box.run_dir), tenant, seed, tally))
                alive[pid] = (time.monotonic() + dice.uniform(*_LIFE_S), tenant)
        time.sleep(0.05)
        for pid, (deadline, _) in list(alive.items()):
            if time.monotonic() > deadline:
                end(pid)  # SIGKILL, in the middle of whatever it does
                del alive[pid]
                kills += 1
    _end_all(alive)
    return kills


def _end_all(alive: dict[int, tuple[float, str]]) -> None:
    for pid in list(alive):
        end(pid)
    alive.clear()


def _be_client(run_dir: str, tenant: str, seed: int, tally: int) -> None:
    """Ask until killed."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    dice = random.Random(seed)  # noqa: S311 - the same
    numbers = np.random.default_rng(seed)
    if dice.random() < 0.3:
        asyncio.run(_ask_asyncio(run_dir, tenant, dice, numbers, tally))
    with Client(tenant, run_dir=run_dir, lane="zmq" if dice.random() < 0.3 else "fast") as client:
        while True:
            _count(tally, _ask_once(client, dice, numbers))


def _ask_once(client: Client, dice: random.Random, numbers: np.random.Generator) -> tuple[int, int, int]:
    """One call or several; (answers, wrong, unexpected)."""
    model = dice.choice(_NAMES)
    timeout_s = dice.choice((0.002, 0.05, 30.0, 30.0, 30.0))
    try:
        if dice.random() < 0.2:
            many = [_make_input(model, dice, numbers, 600) for _ in range(dice.randrange(1, 40))]
            requests = [{"x": x} for x in many]
            results = client.infer_many(model, requests, timeout_s=timeout_s, window=dice.choice((1, 4, 16)))
            wrong = sum(not _is_right(model, x, result["y"]) for x, result in zip(many, results, strict=True))
            return len(results), wrong, 0
        x = _make_input(model, dice, numbers, dice.choice(_SIZES))
        if dice.random() < 0.3:
            shared = client.empty(x.shape, x.dtype)
            shared[...] = x
            y = client.infer(model, {"x": shared}, timeout_s=timeout_s)["y"]
        else:
            y = client.infer(model, {"x": x}, timeout_s=timeout_s, priority=dice.choice((None, "low", "high")))["y"]
        return 1, int(not _is_right(model, x, y)), 0
    except BedsitError as e:
        return 0, 0, int(e.code not in _EXPECTED)


async def _ask_asyncio(
    run_dir: str, tenant: str, dice: random.Random, numbers: np.random.Generator, tally: int
) -> None:
    async with AsyncClient(tenant, run_dir=run_dir) as client:
        while True:
            model = dice.choice(_NAMES)
            inputs = [_make_input(model, dice, numbers, 600) for _ in range(8)]
            tasks = [asyncio.create_task(client.infer(model, {"x": x})) for x in inputs]
            for task in tasks:
                if dice.random() < 0.1:
                    await asyncio.sleep(0)
                    task.cancel()
            right = wrong = unexpected = 0
            for x, task in zip(inputs, tasks, strict=True):
                try:
                    y = (await task)["y"]
                except asyncio.CancelledError:
                    continue
                except BedsitError as e:
                    unexpected += e.code not in _EXPECTED
                    continue
                right += 1
                wrong += not _is_right(model, x, y)
            _count(tally, (right, wrong, unexpected))


def _make_input(model: str, dice: random.Random, numbers: np.random.Generator, elements: int) -> NDArray[np.float32]:
    if model == "mlp":
        return numbers.standard_normal((dice.randrange(1, 4), 1024), dtype=np.float32)
    return numbers.standard_normal((1, elements), dtype=np.float32)


def _is_right(model: str, x: NDArray[np.float32], y: NDArray[np.float32]) -> bool:
    if model == "echo":
        return bool(np.array_equal(x, y))
    if model == "negate":
        return bool(np.array_equal(-x, y))
    return y.shape == (x.shape[0], 1024) and bool(np.allclose(_reference()(x), y, rtol=1e-4, atol=1e-5))


def _reference() -> Any:
    global _mlp  # noqa: PLW0603 - made once in each client
    if _mlp is None:
        import torch

        from bench.models.mlp.make import load

        net = load()

        def call(x: NDArray[np.float32]) -> NDArray[np.float32]:
            with torch.inference_mode():
                y: NDArray[np.float32] = net(torch.from_numpy(x)).numpy()
                return y

        _mlp = call
    return _mlp


_mlp: Any = None


def _count(tally: int, what: tuple[int, int, int]) -> None:
    os.write(tally, _TALLY.pack(*what))  # shorter than PIPE_BUF: whole or not at all


def _drain(fd: int) -> tuple[int, ...]:
    total = [0, 0, 0]
    with contextlib.suppress(BlockingIOError):
        while raw := os.read(fd, _TALLY.size * 1000):
            for at in range(0, len(raw), _TALLY.size):
                total = [a + b for a, b in zip(total, _TALLY.unpack_from(raw, at), strict=True)]
    return tuple(total)


def _find_pids(box: Box) -> dict[str, int]:
    pids = {"router": int(box.status()["router"]["pid"]), "daemon": int(box.status()["pid"])}
    return pids | {f"worker {tenant}": int(box.tenant(tenant)["worker_pid"]) for tenant in _TENANTS}


def _settle(pids: Mapping[str, int]) -> dict[str, Level]:
    """The levels once nobody is there any more: sessions end, and arenas are let go, a little after their clients."""
    deadline = time.monotonic() + _SETTLE_S
    while True:
        levels = {name: _read(pid) for name, pid in pids.items()}
        if time.monotonic() > deadline or not sum(level.arena_bytes for level in levels.values()):
            return levels
        time.sleep(0.2)


def _read(pid: int) -> Level:
    fds = list(Path(f"/proc/{pid}/fd").iterdir())
    opened = 0
    for fd in fds:
        with contextlib.suppress(OSError):
            if "bedsit-arena" in str(fd.readlink()):
                opened += fd.stat().st_size
    mapped = 0
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if "bedsit-arena" in line:
            first, last = (int(word, 16) for word in line.split()[0].split("-"))
            mapped += last - first
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return Level(len(fds), int(line.split()[1]) / 1024, opened + mapped)
    raise RuntimeError(f"process {pid} has no memory to read")


if __name__ == "__main__":
    report.run("soak", measure, show, report.add_minutes)
