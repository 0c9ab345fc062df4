"""What to do about an error when whoever raised it did not say."""

from collections.abc import Mapping
from typing import Final

from bedsit.ipc.errors import BedsitError

_BY_CODE: Final[Mapping[str, str]] = {
    "bundle.invalid": "what a bundle looks like: bedsit model deploy --help",
    "cgroup.refused": "what this box can limit: bedsit doctor",
    "daemon.already_running": "look at it: bedsit status",
    "daemon.unavailable": "start it: bedsit up",
    "deadline.exceeded": "what goes on: bedsit events --follow",
    "device.busy": "who is where: bedsit device partition plan",
    "device.moved": "look again: bedsit device partition plan",
    "device.degraded": "what is wrong with it: bedsit device list",
    "device.full": "who sits where: bedsit device list",
    "device.invalid": "what a device looks like: bedsit tenant create --help",
    "device.not_found": "the devices there are: bedsit device list",
    "device.not_ready": "what is wrong: bedsit device partition plan",
    "internal": "a bug in bedsit; please report it with the output of: bedsit doctor -o json",
    "key.invalid": "make a new key: bedsit key create TENANT",
    "key.not_found": "the keys there are: bedsit key list TENANT",
    "model.exists": "pass --replace to put the new version in the old one's place",
    "model.load_failed": "the model's own output: bedsit logs TENANT",
    "model.failed": "the model's own output: bedsit logs TENANT",
    "model.quarantined": "deploy another version, or bring it back: bedsit model release TENANT/MODEL",
    "model.timeout": "let it run for longer: bedsit tenant set TENANT --run-limit TIME",
    "model.not_found": "the models there are: bedsit model list TENANT",
    "permission.denied": "use root, or a member of the admin group",
    "pool.empty": "blank slots are being made; try again, or look: bedsit ps",
    "queue.full": "wait for answers before sending more",
    "request.invalid": "see the command's --help",
    "input.invalid": "see the command's --help",
    "router.unavailable": "is the router up? bedsit status",
    "router.restarted": "send it again",
    "tenant.exists": "look at it: bedsit tenant show TENANT",
    "tenant.not_found": "the tenants there are: bedsit tenant list",
    "tenant.failed": "why: bedsit events --tenant TENANT; start it again: bedsit tenant start TENANT",
    "tenant.stopped": "start it: bedsit tenant start TENANT",
    "worker.crashed": "why: bedsit events --tenant TENANT, and bedsit logs TENANT",
}


def hint_for(failure: BedsitError) -> str:
    """The error's own hint, else the usual one for its code."""
    return failure.hint or _BY_CODE.get(failure.code, "more: bedsit help exit-codes")
