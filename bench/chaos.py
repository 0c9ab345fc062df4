"""Everything is killed, stopped and starved, under checked load: ``python -m bench.chaos --minutes N --json F``.

Tenants, each with one model: ``a``, ``b`` and ``c`` may be asked again (idempotent), ``d`` may not. Client processes
ask all of them all the time and compare every answer. Meanwhile one fault after the other, drawn by lot:

    kill_*      SIGKILL: daemon, router, zygote, a worker, a slot's init, the parent of all
    stop_*      SIGSTOP for a while, then SIGCONT: the same
    oom         a worker takes more memory than its tenant may
    hang        a call of a model that never returns, and of which no signal handler hears
    full        the state folder is full, and a tenant cannot be created
    read_only   the run folder's records cannot be written, and no slot can be built

A fault counts when its effect was seen (`bench.faults`). Lost is what neither router nor client could save: a request
that ended in an error. ``lost_hit`` are those of a tenant whose slot was hit, and those in flight on ``d``, which
nobody may ask again; ``lost_bystander`` are all others, and should be none.
"""

import contextlib
import os
import random
import signal
import struct
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from bedsit.ipc.client import Client
from bedsit.ipc.errors import CODES, BedsitError
from bench import report
from bench.faults import ONCE, PAUSE_S, RECOVER_S, TENANTS, Ground, Hits, Plot
from bench.processes import end, fork

_CLIENTS: Final = 2  # of each tenant
_MEMORY: Final = "320MiB"
_RUN_S: Final = 2.0  # how long a call may run
_RECORD: Final = struct.Struct("<BBHdd")  # tenant, outcome, code, begin, end
_RIGHT, _WRONG, _TYPED, _UNTYPED = range(4)
_CODES: Final = sorted(CODES)

_MODEL: Final = """
import ctypes, os

def build(bundle):
    def call(x):
        order = int(x[0])
        if order == 1:  # more than anybody may have, touched
            hoard = []
            while True:
                hoard.append(bytearray(os.urandom(1 << 20)) * 16)
        if order == 2:  # never returns, and holds the interpreter while it does not
            ctypes.PyDLL(None).pause()
        return x * 2
    return call
"""
_TOML: Final = """
name = "double"
runner = "python"
entry = "model:build"
[[inputs]]
name = "x"
dtype = "float32"
shape = [-1]
[[outputs]]
name = "y"
dtype = "float32"
shape = [-1]
"""


def measure(quick: bool, minutes: float | None) -> dict[str, Any]:  # noqa: FBT001 - as in every benchmark
    """Let clients ask and faults happen for so long; then end everything and look at what is left."""
    minutes = minutes or (0.5 if quick else 10.0)
    dice = random.Random(7)  # noqa: S311 - a seed, so that a run can be repeated
    out_in, out_out = os.pipe()
    os.set_blocking(out_in, False)
    hits, faults, records = Hits(), Counter[str](), bytearray()
    leftovers: list[str] = []
    with ExitStack() as stack:
        box = Ground()
        try:
            box.up()
            for tenant in TENANTS:
                box.read("tenant", "create", tenant, "--memory", _MEMORY, "--cpus", 1)
                box.read("model", "deploy", tenant, _write_bundle(box.folder / tenant, once=tenant == ONCE))
                # Faults follow one another for minutes: that is nobody's fault, and no reason to take a model out.
                box.admin.call("tenant.set", name=tenant, run_max_s=_RUN_S, quarantine_after=0)
            walls = box.status()["walls"]
            clients = [
                fork(partial(_ask, str(box.run_dir), index, number, out_out))
                for index in range(len(TENANTS))
                for number in range(_CLIENTS)
            ]
            for pid in clients:
                stack.callback(end, pid)
            plot = Plot(box, dice, hits)
            until = time.monotonic() + minutes * 60
            while time.monotonic() < until:
                name = plot.happen()
                faults[name] += 1
                _read_all(out_in, records)
                print(f"\r{sum(faults.values())} faults", end="", file=sys.stderr)
            print(file=sys.stderr)
            time.sleep(2 * PAUSE_S)
            for pid in clients:
                os.kill(pid, signal.SIGTERM)
            _read_all(out_in, records)
            box.read("down")
            box.admin.close()
            leftovers = box.find_leftovers()
        finally:
            box.remove()
    return {"minutes": minutes, "faults": dict(faults), **_judge(records, hits), "leftovers": leftovers, "walls": walls}


def show(result: Mapping[str, Any]) -> None:
    """Print what happened, and what came of it."""
    rows = sorted(result["faults"].items())
    report.print_table(["fault", "seen"], [*rows, ("all", sum(result["faults"].values()))])
    print(
        f"{result['minutes']:g} minutes: {result['requests']:,} requests, {result['wrong']} wrong; lost: "
        f"{result['lost_bystander']} of bystanders, {result['lost_hit']} of those who were hit; "
        f"{result['untyped_errors']} errors without a type; left behind: {', '.join(result['leftovers']) or 'nothing'}"
    )
    print("errors: " + (", ".join(f"{count} {name}" for name, count in result["errors"].items()) or "none"))
    print("longest a bystander waited: {longest_bystander_s} s, anybody: {longest_s} s".format(**result))


def _ask(run_dir: str, index: int, number: int, out: int) -> None:
    """Ask until told to stop; every answer is compared."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    tenant = TENANTS[index]
    numbers = np.random.default_rng(index * 100 + number)
    while True:
        with Client(tenant, run_dir=run_dir, lane="zmq" if number % 2 and index == 1 else "fast") as client:
            while True:
                x = numbers.integers(10, 1000, 16).astype(np.float32)
                began, code = time.monotonic(), 0
                try:
                    y = client.infer("double", {"x": x}, timeout_s=RECOVER_S)["y"]
                    outcome = _RIGHT if np.array_equal(y, 2 * x) else _WRONG
                except BedsitError as e:
                    outcome = _TYPED if e.code in CODES else _UNTYPED
                    code = _CODES.index(e.code) if e.code in CODES else 0
                except Exception:  # noqa: BLE001 - this is what is counted
                    outcome = _UNTYPED
                os.write(out, _RECORD.pack(index, outcome, code, began, time.monotonic()))
                if outcome != _RIGHT:
                    break
                time.sleep(0.002)


def _judge(records: bytes | bytearray, hits: Hits) -> dict[str, Any]:
    counts, errors = Counter[str](), Counter[str]()
    longest = longest_bystander = 0.0
    for at in range(0, len(records) - len(records) % _RECORD.size, _RECORD.size):
        index, outcome, code, began, ended = _RECORD.unpack_from(records, at)
        tenant = TENANTS[index]
        is_spared = hits.spare(tenant, began, ended)
        longest = max(longest, ended - began)
        if is_spared:
            longest_bystander = max(longest_bystander, ended - began)
        counts["requests"] += 1
        counts["wrong"] += outcome == _WRONG
        counts["untyped_errors"] += outcome == _UNTYPED
        if outcome in (_TYPED, _UNTYPED):
            counts["lost_bystander" if is_spared else "lost_hit"] += 1
            errors[f"{_CODES[code]} of {tenant}"] += 1
            if not is_spared and tenant != ONCE:
                counts["lost_idempotent"] += 1
    names = ("requests", "wrong", "lost_bystander", "lost_hit", "lost_idempotent", "untyped_errors")
    return {
        **{name: counts[name] for name in names},
        "errors": dict(errors.most_common()),
        "longest_s": round(longest, 2),
        "longest_bystander_s": round(longest_bystander, 2),
    }


def _read_all(fd: int, into: bytearray) -> None:
    with contextlib.suppress(BlockingIOError):
        while data := os.read(fd, 1 << 16):
            into += data


def _write_bundle(folder: Path, *, once: bool) -> Path:
    folder.mkdir()
    (folder / "bedsit.toml").write_text(f"idempotent = {str(not once).lower()}\n{_TOML}")
    (folder / "model.py").write_text(_MODEL)
    return folder


if __name__ == "__main__":
    report.run("chaos", measure, show, report.add_minutes)
