"""One slot's birth: the zygote forks it, answers what it asks while it jails itself, and ends it if anything fails."""

import contextlib
import dataclasses
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NoReturn

from bedsit.ipc import seqpacket
from bedsit.ipc.errors import BedsitError, error
from bedsit.sandbox import init
from bedsit.sandbox.jail.birth import Way, bear
from bedsit.sandbox.jail.context import INIT_ID, PROFILES, WORKER_ID, Context, House, Order
from bedsit.sandbox.jail.steps import Step, StepFailed, enter
from bedsit.sandbox.nodes import read_nodes

Entry = Callable[[int, str], None]

_MAX_MESSAGE: Final = 1000
DEADLINE_S: Final = 10.0
MAX_FDS: Final = 16
_UMASK: Final = 0o022  # the folders above a bind must be open to the worker, whatever the zygote was started with


def read_order(message: Mapping[str, Any], fds: Sequence[int]) -> tuple[Order, dict[str, list[int]]]:
    """The order in a spawn request and its descriptors by name. Raises ``wire.malformed``."""
    names = message.get("fds")
    if not isinstance(names, list) or len(names) != len(fds) or names[:3] != ["listener", "build", "group"]:
        raise error("wire.malformed", "a spawn request brings a listener, a build pipe, a group and cgroup files")
    try:
        order = Order(
            slot=str(message["slot"]),
            init_uid=int(message["init_uid"]),
            worker_uid=int(message["worker_uid"]),
            run_dir=os.path.realpath(str(message["run_dir"])),
            tmp_bytes=int(message["tmp_bytes"]),
            bundle_bytes=int(message["bundle_bytes"]),
            profile=PROFILES[PROFILES.index(message.get("profile", "standard"))],
            filter=_read_filter(message, "filter"),
            init_filter=_read_filter(message, "init_filter"),
            nodes=read_nodes(message),
            env=tuple((str(name), str(value)) for name, value in dict(message.get("env", {})).items()),
        )
    except (KeyError, TypeError, ValueError) as e:
        raise error("wire.malformed", f"a spawn request lacks {e}") from None
    if not 0 < order.init_uid != order.worker_uid > 0:
        raise error("wire.malformed", "a slot needs two users, and neither may be root")
    return order, {name: [fd for n, fd in zip(names, fds, strict=True) if n == name] for name in names}


def _read_filter(message: Mapping[str, Any], name: str) -> bytes:
    """A seccomp program, unread: whether it is one is the kernel's to say. Empty when the daemon could make none."""
    program = message.get(name, b"")
    if not isinstance(program, bytes):
        raise TypeError(name)
    return program


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """How a slot is made: its steps, what its worker runs, and how its first process is forked."""

    steps: tuple[Step, ...]
    entry: Entry
    ways: tuple[Way, ...]


def spawn(order: Order, fds: Mapping[str, list[int]], house: House, plan: Plan) -> dict[str, Any]:
    """Fork a slot and see it into its jail; blocks until it is ready or gone, DEADLINE_S at most.

    The answer is the zygote's answer to the daemon. After a failure no process of the slot is left, or the answer says
    that one does not die (DEADLINE_S after its SIGKILL it hangs in the kernel): the slot's group then stays.
    """
    started = time.monotonic()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    context = Context(
        order=order,
        house=house,
        listener=fds["listener"][0],
        build=fds["build"][0],
        group=fds["group"][0],
        joins=tuple(fds.get("join", ())),
        report=theirs,
        ids=(order.init_uid, order.worker_uid),
    )
    try:
        with ours, theirs, _keep_the_dead():
            pid, pidfd = _fork(context, ours, plan)
            theirs.close()
            _shepherd(context, pid, pidfd, ours, started + DEADLINE_S)
    except (StepFailed, OSError, BedsitError) as e:
        failure = e if isinstance(e, StepFailed) else StepFailed("fork", e)
        return {
            "ok": False,
            "slot": order.slot,
            "step": failure.step,
            "errno": failure.number,
            "message": failure.message,
        }
    context.steps_ms["total"] = round((time.monotonic() - started) * 1000, 3)
    return {
        "ok": True,
        "slot": order.slot,
        "pid": pid,
        "steps_ms": context.steps_ms,
        "missing": context.missing,
        "proven": context.proven,
    }


@contextlib.contextmanager
def _keep_the_dead() -> Iterator[None]:
    """A child that dies meanwhile stays a zombie, so that its pid means nobody else; at the end all are reaped.

    At other times the zygote ignores SIGCHLD, and its children vanish by themselves.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _fork(context: Context, ours: socket.socket, plan: Plan) -> tuple[int, int]:
    """The slot's first process: its pid and a pidfd, which the caller closes."""
    # JUSTIFICATION: a fork: a slot is a warm copy of this process; that is what a zygote is for.
    # SAFETY: the first step made sure of one thread, so no lock is copied in a locked state.
    enter(context, plan.steps)
    began = time.perf_counter()
    pid, pidfd = bear(context, plan.ways)
    if pid == 0:
        _become_slot(context, ours, plan, began)
    return pid, pidfd


def _become_slot(context: Context, ours: socket.socket, plan: Plan, began: float) -> NoReturn:
    """Never returns and never unwinds: above this frame lies the zygote's loop, which is no business of a slot's."""
    try:
        ours.close()
        os.umask(_UMASK)
        context.role = "slot"
        context.steps_ms["fork"] = round((time.perf_counter() - began) * 1000, 3)
        enter(context, plan.steps)
        if context.worker_pid:
            init.run(context)
        else:
            _run_worker(context, plan.entry)
    except StepFailed as e:
        _report(context, e)
    except BaseException as e:  # noqa: BLE001  whatever it is, the zygote hears of it, and this process ends
        _report(context, StepFailed(context.role, e))
    finally:
        os._exit(70)


def _run_worker(context: Context, entry: Entry) -> NoReturn:
    code = 1
    try:
        context.tell("up", steps_ms=context.steps_ms, missing=context.missing, proven=context.proven)
        context.report.close()
        entry(context.control, context.order.slot)
        code = 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 1
    except BaseException:  # noqa: BLE001  a tenant's code may raise anything; its log shows what
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code & 0xFF)


def _report(context: Context, failure: StepFailed) -> None:
    with contextlib.suppress(OSError):
        context.tell("failed", step=failure.step, errno=failure.number, message=failure.message[:_MAX_MESSAGE])


def _shepherd(context: Context, pid: int, pidfd: int, report: socket.socket, deadline: float) -> None:
    """Answer the slot's reports until both its processes are up and have let go of the report socket.

    If that fails, kill the slot and wait until it is gone, DEADLINE_S at most. Closes *pidfd*.

    Raises StepFailed, or whatever a broken report socket raises.
    """
    try:
        waiting = {"init", "worker"}
        while message := _next_report(report, deadline, waiting):
            if message["kind"] == "map":
                _write_maps(pid, context.order)
                seqpacket.send_packet(report, {"go": True})
            else:
                waiting.discard(message["role"])
                # Of a step that both take, the worker's time: init's own has its wait for the worker in it.
                ours = message["steps_ms"]
                context.steps_ms = context.steps_ms | ours if message["role"] == "worker" else ours | context.steps_ms
                context.missing |= message["missing"]
                context.proven += message["proven"]
    except BaseException as e:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        # Readable once it is dead; and pid 1 of a namespace dies last of all that are in it (pid_namespaces(7)).
        if not select.select([pidfd], [], [], DEADLINE_S)[0] and isinstance(e, StepFailed):
            e.message += f"; its process {pid} is still there {DEADLINE_S:g} s after SIGKILL"
        raise
    finally:
        os.close(pidfd)


def _next_report(report: socket.socket, deadline: float, waiting: set[str]) -> dict[str, Any] | None:
    if not select.select([report], [], [], max(0.0, deadline - time.monotonic()))[0]:
        raise StepFailed("deadline", f"not ready after {DEADLINE_S:g} s")
    message, _ = seqpacket.recv_packet(report)
    if message is None and waiting:
        raise StepFailed("exit", "the slot ended without a word")
    if message is not None and message["kind"] == "failed":
        failure = StepFailed(message["step"], message["message"])
        failure.number = message["errno"]
        raise failure
    return message


def _write_maps(pid: int, order: Order) -> None:
    lines = f"{INIT_ID} {order.init_uid} 1\n{WORKER_ID} {order.worker_uid} 1\n"
    try:
        # "deny" first: it is too late once a gid map is there, and a slot could then drop a group that forbids.
        for name, text in (("setgroups", "deny"), ("gid_map", lines), ("uid_map", lines)):
            with open(f"/proc/{pid}/{name}", "w", encoding="utf-8") as file:
                file.write(text)
    except OSError as e:
        raise StepFailed("map_ids", e) from e
