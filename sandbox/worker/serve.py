"""The worker's life: wait blank for an assignment, load the models, connect, answer requests until killed.

One thread: a second Python thread costs milliseconds per request. ``inference_mode`` is entered once.
"""

import contextlib
import gc
import os
import select
import socket
import sys
import traceback
from pathlib import Path
from typing import Final, NoReturn

import torch
import zmq

from bedsit.ipc import wire
from bedsit.ipc.errors import CODES, BedsitError, error
from bedsit.ipc.lane import Channel, ZmqChannel
from bedsit.ipc.seqpacket import recv_bytes
from bedsit.ipc.slot import Assignment, Report, decode_assignment, encode_report
from bedsit.ipc.wire import Kind
from bedsit.sandbox.worker.arenas import ArenaTable
from bedsit.sandbox.worker.bundle import unpack_bundle
from bedsit.sandbox.worker.runners import Runner, load_runner
from bedsit.sandbox.worker.tensors import read_inputs, write_outputs

RUN_DIR: Final = "/run/slot"
BUNDLES: Final = Path("/bundle")
_MAX_ARTIFACTS: Final = 248
_MAX_MESSAGE: Final = 2000
_MAX_ERROR: Final = 32 << 10  # as msgpack; the detail of output.too_small, 32 names, is the longest of ours

Models = dict[tuple[int, int], Runner]


def run(control_fd: int, slot: str, run_dir: str = RUN_DIR, bundles: Path = BUNDLES) -> NoReturn:
    """Serve in slot *slot*; *control_fd* leads to the slot's init. Ends only with the process.

    The router's sockets are in *run_dir*, bundles are unpacked below *bundles*: places inside the jail.
    """
    control = socket.socket(fileno=control_fd)
    assignment, fds = _await_assignment(control)
    torch.set_num_threads(assignment.threads)
    sys.dont_write_bytecode = True
    with contextlib.suppress(ImportError):
        import setproctitle

        setproctitle.setproctitle(f"bedsit: worker {slot} {assignment.tenant}")
    with torch.inference_mode():
        models = _load_all(control, assignment, fds, bundles)
        gc.collect()
        gc.freeze()
        _serve(control, models, run_dir)


def _await_assignment(control: socket.socket) -> tuple[Assignment, list[int]]:
    body, fds = recv_bytes(control, _MAX_ARTIFACTS)
    if body is None:
        sys.exit(0)  # the init is gone, and with it the slot
    return decode_assignment(body), fds


def _load_all(control: socket.socket, assignment: Assignment, fds: list[int], bundles: Path) -> Models:
    models: Models = {}
    for index, (model, fd) in enumerate(zip(assignment.models, fds, strict=True)):
        try:
            control.send(encode_report(Report.PROGRESS, index, b"unpack"))
            bundle = unpack_bundle(fd, bundles / f"{model.name}-{model.version}")
            if bundle.manifest.name != model.name:
                named = bundle.manifest.name
                raise error("bundle.invalid", f"bedsit.toml names the model {named!r}, not {model.name!r}")
            control.send(encode_report(Report.PROGRESS, index, b"load"))
            models[model.number, model.version] = load_runner(bundle)
            control.send(encode_report(Report.LOADED, index, bundle.manifest.encode()))
        except (Exception, SystemExit) as e:  # noqa: BLE001 - the tenant's code may raise anything, and exit
            failure = _as_failure(e, "model.load_failed", "the model does not load")
            text = f"{failure.code}\n{failure.message}".encode(errors="replace")
            control.send(encode_report(Report.FAILED, index, text))
            # A slot with a part of its models is of no use; the daemon destroys it. Not by sys.exit: torch takes
            # three seconds to be torn down, and the tenant's own exit handlers may take for ever.
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(1)
    return models


def _serve(control: socket.socket, models: Models, run_dir: str) -> NoReturn:
    arenas = ArenaTable(f"{run_dir}/fd.sock")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    lane: Channel = ZmqChannel(context, f"{run_dir}/router.sock")
    epoll = select.epoll()
    epoll.register(lane.fileno(), select.EPOLLIN | select.EPOLLET)
    link = _meet_router(arenas, lane, epoll)
    control.send(encode_report(Report.SERVING))
    while True:
        while (packet := lane.receive()) is not None:
            lane.send(answer(bytearray(packet), models, arenas))
        for fd, _ in epoll.poll():
            if fd == link.fileno() and not arenas.receive():
                link = _meet_router(arenas, lane, epoll)  # closing the old socket took it out of the epoll


def _meet_router(arenas: ArenaTable, lane: Channel, epoll: select.epoll) -> socket.socket:
    """Connect to the router (a new one after it restarted) and say that this worker is ready."""
    link = arenas.connect()
    epoll.register(link.fileno(), select.EPOLLIN)
    while not lane.send(wire.pack_packet(Kind.READY, 0)):
        select.select([], [], [], 0.01)  # the lane is still reconnecting
    return link


def answer(packet: bytearray, models: Models, arenas: ArenaTable) -> bytes:
    """The answer to a request: a RESPONSE or an ERROR, under the request's id."""
    envelope = wire.read_envelope(packet)
    try:
        runner = models.get((envelope.model, envelope.model_version))
        if envelope.kind != Kind.REQUEST or runner is None:
            raise error("model.not_found", "this worker has no such model")
        refs, regions = wire.decode_request(packet, envelope)
        arena = arenas.find(envelope.arena)
        inputs = read_inputs(runner.manifest.inputs, refs, wire.body_of(packet, envelope), arena)
        outputs = runner.run(inputs)
        tensors, body = write_outputs(runner.manifest.outputs, outputs, regions, arena)
        return wire.pack_packet(Kind.RESPONSE, envelope.id, wire.encode_response(tensors), body, model=envelope.model)
    except Exception as e:  # noqa: BLE001 - the tenant's code may raise anything
        failure = _as_failure(e, "model.failed", "the model raised")
        return wire.pack_packet(Kind.ERROR, envelope.id, wire.encode_error(failure), model=envelope.model)


def _as_failure(e: BaseException, code: str, what: str) -> BedsitError:
    """The error to report: short enough to travel, whatever was raised."""
    # One of ours goes as it is; the tenant's code may raise our classes too, with anything in them.
    with contextlib.suppress(Exception):
        if isinstance(e, BedsitError) and CODES[e.code] is type(e) and len(wire.encode_error(e)) < _MAX_ERROR:
            return e
    traceback.print_exc()  # into the tenant's own log
    try:
        text = f"{what}: {type(e).__name__}: {e}"[:_MAX_MESSAGE]
    except Exception:  # noqa: BLE001 - its __str__ raises
        text = f"{what}: {type(e).__name__}"
    return error(code, text.encode(errors="replace").decode(), "the traceback is in `bedsit logs`")
