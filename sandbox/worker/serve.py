"""The worker's life: wait blank for an assignment, load the models, connect, answer requests until killed.

One thread: a second Python thread costs milliseconds per request. ``inference_mode`` is entered once.
"""

import contextlib
import gc
import os
import socket
import sys
import time
from pathlib import Path
from typing import Final, NoReturn

import torch

from bedsit.ipc import leasepage
from bedsit.ipc.errors import error
from bedsit.ipc.leasepage import LeaseView
from bedsit.ipc.seqpacket import recv_bytes
from bedsit.ipc.slot import Assignment, Report, decode_assignment, encode_report
from bedsit.sandbox.worker.arenas import ArenaTable
from bedsit.sandbox.worker.bundle import unpack_bundle
from bedsit.sandbox.worker.calls import Calls, as_failure
from bedsit.sandbox.worker.device import find_device, wake_device
from bedsit.sandbox.worker.lanes import Lanes
from bedsit.sandbox.worker.residence import doze
from bedsit.sandbox.worker.runners import Runner, load_runner
from bedsit.sandbox.worker.turns import Turns

RUN_DIR: Final = "/run/slot"
BUNDLES: Final = Path("/bundle")
_MAX_ARTIFACTS: Final = 248
# After a call that took longer, looking for cancelled requests costs nothing.
_LONG_NS: Final = 1_000_000

Models = dict[tuple[int, int], Runner]


def run(control_fd: int, slot: str, run_dir: str = RUN_DIR, bundles: Path = BUNDLES) -> NoReturn:
    """Serve in slot *slot*; *control_fd* leads to the slot's init. Ends only with the process.

    The router's sockets are in *run_dir*, bundles are unpacked below *bundles*: places inside the jail.
    """
    control = socket.socket(fileno=control_fd)
    wake_device(control)
    assignment, fds = _await_assignment(control)
    torch.set_num_threads(assignment.threads)
    sys.dont_write_bytecode = True
    with contextlib.suppress(ImportError):
        import setproctitle

        setproctitle.setproctitle(f"bedsit: worker {slot} {assignment.tenant}")
    device = find_device()
    # What leaves a device now and then must count how often it is written to (`residence`).
    with torch.inference_mode() if device.type == "cpu" else torch.no_grad():
        models = _load_all(control, assignment, fds, bundles, device)
    with torch.inference_mode():
        gc.collect()
        gc.freeze()
        _serve(control, models, run_dir, assignment.doze_s)


def _await_assignment(control: socket.socket) -> tuple[Assignment, list[int]]:
    body, fds = recv_bytes(control, _MAX_ARTIFACTS)
    if body is None:
        sys.exit(0)  # the init is gone, and with it the slot
    return decode_assignment(body), fds


def _load_all(
    control: socket.socket, assignment: Assignment, fds: list[int], bundles: Path, device: torch.device
) -> Models:
    models: Models = {}
    for index, (model, fd) in enumerate(zip(assignment.models, fds, strict=True)):
        try:
            control.send(encode_report(Report.PROGRESS, index, b"unpack"))
            bundle = unpack_bundle(fd, bundles / f"{model.name}-{model.version}")
            bundle.device = device
            if bundle.manifest.name != model.name:
                named = bundle.manifest.name
                raise error("bundle.invalid", f"bedsit.toml names the model {named!r}, not {model.name!r}")
            control.send(encode_report(Report.PROGRESS, index, b"load"))
            models[model.number, model.version] = load_runner(bundle)
            control.send(encode_report(Report.LOADED, index, bundle.manifest.encode()))
        except (Exception, SystemExit) as e:  # noqa: BLE001 - the tenant's code may raise anything, and exit
            failure = as_failure(e, "model.load_failed", "the model does not load")
            text = f"{failure.code}\n{failure.message}".encode(errors="replace")
            control.send(encode_report(Report.FAILED, index, text))
            # A slot with a part of its models is of no use; the daemon destroys it. Not by sys.exit: torch takes
            # three seconds to be torn down, and the tenant's own exit handlers may take for ever.
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(1)
    return models


def _serve(control: socket.socket, models: Models, run_dir: str, doze_s: float) -> NoReturn:
    arenas = ArenaTable()
    lanes = Lanes(run_dir, arenas)
    turns = Turns(_open_lease(run_dir), lanes.hear, lanes.tell_turn)
    for runner in models.values():
        runner.bundle.turns = turns
    calls = Calls(models, arenas, turns)
    residences = [each for runner in models.values() if (each := runner.residence) is not None and each.can_leave]
    control.send(encode_report(Report.SERVING))
    look = False
    while True:
        if doze_s and not all(residence.is_away for residence in residences) and not lanes.wait(doze_s):
            residences = doze(residences, doze_s)
        orders = lanes.next_batch(look=look)
        began_ns = time.monotonic_ns()
        calls.answer(orders, lanes.is_cancelled)
        look = time.monotonic_ns() - began_ns > _LONG_NS


def _open_lease(run_dir: str) -> LeaseView:
    """The page that the router made before it listened; a worker that has none takes no turns."""
    try:
        return LeaseView.open(f"{run_dir}/{leasepage.NAME}")
    except (OSError, ValueError):
        return LeaseView.free()
