"""What a box should be and what it is, side by side.

What should be is read from the registry, the file that it is. What is comes from everybody else: what the daemon says,
records, cgroups, folders, processes, the router's snapshot, and what clients are answered.
"""

import json
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bedsit import Client
from bedsit.ipc import snapshot
from bedsit.ipc.errors import BedsitError

#: All that is in both folders of a box.
_RUN = {"admin.sock", "control.sock", "lock", "places.json", "snapshot.msgpack"} | {
    *("inits", "records", "router", "slots", "zygotes"),
}
_STATE = {"artifacts", "bedsit.db", "bedsit.db-shm", "bedsit.db-wal", "lock", "logs"}
#: What clients are told of tenants that do not serve.
_REFUSALS = {"unknown": "tenant.not_found", "empty": "model.not_found", "stopped": "tenant.stopped"}


class Wish(NamedTuple):
    """A tenant as the registry has it."""

    wanted: str
    slots: int
    keys: set[str]
    #: All (model, version) pairs, and the default versions by the model's name.
    versions: list[tuple[int, int]]
    defaults: dict[str, int]
    digests: set[str]

    @property
    def state(self) -> str:
        """What the daemon should say of it."""
        return "empty" if self.wanted == "running" and not self.versions else self.wanted


def read_wishes(box: Any) -> dict[str, Wish]:
    """All tenants of the registry."""
    with closing(sqlite3.connect(box.state / "bedsit.db")) as db:

        def of(number: int, what: str) -> list[Any]:
            return db.execute(f"SELECT {what} WHERE tenant = ?", (number,)).fetchall()

        return {
            name: Wish(
                wanted,
                slots,
                {key for (key,) in of(number, "id FROM keys")},
                sorted(of(number, "model, version FROM versions")),
                dict(of(number, "name, default_version FROM models")),
                {digest for (digest,) in of(number, "digest FROM versions")},
            )
            for number, name, wanted, slots in db.execute("SELECT number, name, wanted, min_slots FROM tenants")
        }


def find_differences(box: Any, names: Iterable[str]) -> list[str]:
    """Everything in which a box is not what it should be, in words; it may take a moment until that is nothing.

    *names* are all tenants that may be there. They are asked as well: version N of their model "echo" multiplies by
    N + 1.
    """
    try:
        wishes, rows = read_wishes(box), box.call("ps")
        should, seen = say_what_should_be(box, wishes, rows), see_what_is(box, rows)
        found = [f"{what}: {seen[what]} instead of {should[what]}" for what in should if seen[what] != should[what]]
        return found or [wrong for name in names for wrong in ask(box, name, wishes.get(name))]
    except (BedsitError, OSError, ValueError, sqlite3.Error) as e:
        return [repr(e)]


def say_what_should_be(box: Any, wishes: dict[str, Wish], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """All there should be, by what it is. Names and processes of slots are the daemon's choice: *rows* have them."""
    slots = sorted(row["slot"] for row in rows)
    blank = [("", "blank", [])] * box.settings["pool_size"]
    running = [(name, wish) for name, wish in sorted(wishes.items()) if wish.state == "running"]
    serving = [(name, "serving", wish.versions) for name, wish in running for _ in range(wish.slots)]
    return {
        "tenants": {name: (wish.state, wish.keys, wish.defaults) for name, wish in wishes.items()},
        "slots": [(name, state) for name, state, _ in [*blank, *serving]],
        "records": [*blank, *serving],
        "pairs of uids": len(slots),
        "processes": {row[which] for row in rows for which in ("init_pid", "worker_pid")},
        "cgroups": {tuple(slots)},
        "files of records": [f"{slot}.json" for slot in slots],
        "sockets of inits": [f"{slot}.sock" for slot in slots],
        "folders of slots": slots,
        "tenants in the snapshot": {
            name: (wish.wanted, wish.keys, wish.defaults, wish.versions) for name, wish in wishes.items()
        },
        "slots in the snapshot": serving,
        "artifacts": sorted({digest for wish in wishes.values() for digest in wish.digests}),
        "output of nobody": set(),
        "run folder": _RUN,
        "state folder": _STATE,
        "router": box.router.pid,
        "zygotes": 1,
        "sockets of zygotes": 1,
        "mounts": [],
    }


def see_what_is(box: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """All there is, under the same names."""
    status = box.call("status")
    names = [tenant["name"] for tenant in status["tenants"]]
    keys = {name: {key["id"] for key in box.call("key.list", tenant=name)} for name in names}
    models = {name: {m["name"]: m["default"] for m in box.call("model.list", tenant=name)} for name in names}
    records = [json.loads(path.read_bytes()) for path in (box.run / "records").glob("*.json")]
    view = snapshot.decode((box.run / "snapshot.msgpack").read_bytes())
    return {
        "tenants": {t["name"]: (t["state"], keys[t["name"]], models[t["name"]]) for t in status["tenants"]},
        "slots": sorted((row["tenant"] or "", row["state"]) for row in rows),
        "records": sorted((r["tenant"] or "", r["phase"], [tuple(place) for place in r["models"]]) for r in records),
        "pairs of uids": len({record["init_uid"] for record in records}),
        "processes": {*box.processes()},
        "cgroups": {tuple(sorted(path.name for path in group.iterdir() if path.is_dir())) for group in box.groups()},
        "files of records": _list(box.run / "records"),
        "sockets of inits": _list(box.run / "inits"),
        "folders of slots": _list(box.run / "slots"),
        "tenants in the snapshot": {tenant.name: _read_view(tenant) for tenant in view.tenants},
        "slots in the snapshot": sorted((slot.tenant, slot.state, sorted(slot.models)) for slot in view.slots),
        "artifacts": _list(box.state / "artifacts"),
        "output of nobody": {*_list(box.state / "logs")}.difference(names),
        "run folder": {*_list(box.run)},
        "state folder": {*_list(box.state)},
        "router": status["router"]["pid"],
        "zygotes": sum(_says_to(process, box.run / "zygotes") for process in Path("/proc").glob("[0-9]*")),
        "sockets of zygotes": len([*(box.run / "zygotes").glob("*.sock")]),
        "mounts": [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(box.root) in line],
    }


def ask(box: Any, name: str, wish: Wish | None) -> list[str]:
    """Ask each version of a tenant's model, and the one that answers where none is named; gives what was wrong."""
    right: dict[int | None, float | str]
    if wish is not None and wish.state == "running":
        right = {None: wish.defaults["echo"] + 1, **{version: version + 1 for _, version in wish.versions}}
    else:
        right = {None: _REFUSALS[wish.state if wish else "unknown"]}
    with Client(name, run_dir=str(box.run)) as client:
        answers = {version: _infer(client, version) for version in right}
    return [] if answers == right else [f"{name} answers {answers} instead of {right}"]


def _infer(client: Client, version: int | None) -> float | str:
    try:
        return float(client.infer("echo", {"x": np.ones((1, 4), np.float32)}, version=version)["x"][0, 0])
    except BedsitError as e:
        return e.code


def _read_view(tenant: snapshot.TenantView) -> tuple[str, set[str], dict[str, int], list[tuple[int, int]]]:
    defaults = {model.name: model.default for model in tenant.models}
    versions = sorted((model.number, version.version) for model in tenant.models for version in model.versions)
    return tenant.state, {key.id for key in tenant.keys}, defaults, versions


def _says_to(process: Path, folder: Path) -> bool:
    """Whether what a process says goes to a file in *folder*."""
    try:
        return (process / "fd" / "1").readlink().parent == folder
    except OSError:
        return False


def _list(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
