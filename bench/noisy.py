"""A tenant beside an attacker: ``python -m bench.noisy --json F [--quick]``.

The victim is asked by one client in a closed loop, 2 ms after each answer; rounds with and without the attack take
turns. Core 0 holds router, victim's worker and that client, core 1 the rest: daemon, zygote, attackers and whoever asks
them, in the rounds without an attack too. Slots born later inherit core 1 from the zygote.

An attacker is a real bundle that harms from inside of its slot for as long as a request lasts, and is asked again at
once. One that dies is started again, as an operator would. What it achieved is counted; a harm that was not there is an
error, not a good result.
"""

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from bedsit.ipc.client import Client
from bench import report, tiny
from bench.attackers.harm import ATTACKS, Attack, Harm
from bench.loads import Array, Call
from bench.paced import Paced, pace
from bench.processes import pin
from examples.box import Box
from examples.tiny.make import make

_VICTIM: Final = "victim"
_BUNDLE: Final = Path(__file__).parent / "attackers/bundle"
_EVENTS: Final = 10_000


class Scene(NamedTuple):
    """The box with its victim, and how it is asked."""

    box: Box
    cpus: set[int]
    percent: int
    samples: int


class Round(NamedTuple):
    """The victim alone, then beside the attack, and what that achieved."""

    alone: Paced
    attack: Paced
    seen: Mapping[str, float]


def measure(quick: bool) -> dict[str, Any]:  # noqa: FBT001 - the one switch that every benchmark has
    """Start a bedsit with its victim, and let one attacker after the other in."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise RuntimeError("this needs two cores: one for the victim, one for the attacker")
    near, far = {cores[0]}, {cores[1]}
    os.sched_setaffinity(0, far)  # and so for all that is started from here
    rounds = 2 if quick else 5
    with Box({"pool_size": 1}) as box:
        box.read("tenant", "create", _VICTIM)
        box.read("model", "deploy", _VICTIM, make(box.folder / "victim"))
        worker = box.tenant(_VICTIM)["worker_pid"]
        pin([box.status()["router"]["pid"], worker], near)
        scene = Scene(box, near, 95 if quick else 99, 200 if quick else 1000)
        attacks = {attack.name: _summarise(scene, _attack(attack, scene, rounds)) for attack in ATTACKS}
        if box.tenant(_VICTIM)["worker_pid"] != worker:
            raise RuntimeError("the victim's worker did not live through it")
        return {"percentile": f"p{scene.percent}", "attacks": attacks, "walls": box.status()["walls"]}


def show(result: Mapping[str, Any]) -> None:
    """Print the table."""
    keys = ("alone_ms", "attack_ms", "ratio", "samples", "victim_errors")
    rows = []
    for name, row in result["attacks"].items():
        seen = ", ".join(f"{key} {value:,.3g}" for key, value in row["effect"].items() if value)
        rows.append([name, *(row[key] for key in keys), seen])
    report.print_table([f"{result['percentile']} of the victim", *keys, "the attack"], rows)


def _attack(attack: Attack, scene: Scene, rounds: int) -> list[Round]:
    box, name = scene.box, attack.tenant
    box.read("tenant", "create", name, *attack.options)
    box.read("model", "deploy", name, _BUNDLE)
    runs = [_run_round(attack, scene) for _ in range(rounds)]
    box.read("tenant", "delete", name, "--yes")
    box.await_pool()
    return runs


def _run_round(attack: Attack, scene: Scene) -> Round:
    alone = _ask_victim(scene)
    cpu, ooms, began = _read_cpu(scene.box, attack), _count_ooms(scene.box, attack), time.monotonic()
    harm = Harm(attack, scene.box.run_dir)
    try:
        beside = _ask_victim(scene)
        cpu_share = (_read_cpu(scene.box, attack) - cpu) / (time.monotonic() - began)
    finally:
        counted = harm.stop()
    seen = {**counted, "ooms": _count_ooms(scene.box, attack) - ooms, "cpu_share": round(max(0.0, cpu_share), 2)}
    if not attack.happened(seen):
        raise RuntimeError(f"{attack.name} had no effect: {seen}")
    return Round(alone, beside, seen)


def _ask_victim(scene: Scene) -> Paced:
    return pace(lambda: _connect(scene.box), tiny.make_example(), scene.samples, scene.cpus)


def _connect(box: Box) -> Call:
    infer = Client(_VICTIM, run_dir=str(box.run_dir)).infer

    def call(x: Array) -> Array:
        y: Array = infer("tiny", {"x": x})["y"]
        return y

    return call


def _read_cpu(box: Box, attack: Attack) -> float:
    """Seconds of processor time that the attacker's slot has used, as its cgroup counts them."""
    return sum(row["cpu_seconds"] or 0.0 for row in box.admin.call("ps") if row["tenant"] == attack.tenant)


def _count_ooms(box: Box, attack: Attack) -> int:
    events = box.admin.stream("events", tenant=attack.tenant, limit=_EVENTS)
    return sum(event["kind"] == "slot.died" and event["cause"] == "oom" for event in events)


def _summarise(scene: Scene, rounds: Sequence[Round]) -> dict[str, Any]:
    """Medians of the rounds' percentiles; samples, errors and what the attack achieved are sums, its share is not."""
    alone, beside = (
        statistics.median(paced.percentile_ms(scene.percent) for paced in same)
        for same in ([run.alone for run in rounds], [run.attack for run in rounds])
    )
    effect = {key: sum(run.seen[key] for run in rounds) for key in rounds[0].seen if key != "cpu_share"}
    return {
        "alone_ms": round(alone, 3),
        "attack_ms": round(beside, 3),
        "ratio": round(beside / alone, 3),
        "samples": sum(len(run.attack.latencies) for run in rounds),
        "victim_errors": sum(run.alone.errors + run.attack.errors for run in rounds),
        "effect": effect | {"cpu_share": round(statistics.mean(run.seen["cpu_share"] for run in rounds), 2)},
    }


if __name__ == "__main__":
    report.run("noisy", measure, show)
