"""Stands in for systemd where none runs: started with ``serve`` it is the manager, otherwise a systemctl that asks it.

The manager knows ``start``, ``stop`` and ``show``. It makes a unit's cgroup as systemd would, and runs the shipped
zygote unit's own ExecStart there as a real process, with the paths of the test's box and no capability but the unit's.
``settings.json`` beside the program says where that is, and may order it to refuse or to start something else.
"""

import contextlib
import json
import os
import shlex
import signal
import socket
import sys
from pathlib import Path
from typing import Any

HERE = Path(sys.argv[0]).parent
ADDRESS = str(HERE / "manager.sock")


def read_settings() -> dict[str, Any]:
    """What the test ordered."""
    settings: dict[str, Any] = json.loads((HERE / "settings.json").read_text())
    return settings


def read_command(generation: str) -> list[str]:
    """The unit's command and capabilities, in the box's folders and with the tests' interpreter."""
    settings = read_settings()
    lines = Path(settings["unit"]).read_text().replace("\\\n", " ").splitlines()
    (start,) = [line.removeprefix("ExecStart=") for line in lines if line.startswith("ExecStart=")]
    (kept,) = [line.partition("=")[2] for line in lines if line.startswith("CapabilityBoundingSet=")]
    kept = kept.lower().replace("cap_", "+").replace(" ", ",")
    start = start.replace("%i", generation).replace("/run/bedsit", settings["run"])
    start = start.replace("/opt/bedsit/bin/python", sys.executable)
    return ["/usr/bin/setpriv", "--no-new-privs", f"--bounding-set=-all,{kept}", *shlex.split(start)]


def start(name: str) -> None:
    """Make the unit's group and start its process there; returns at once, as with --no-block."""
    settings = read_settings()
    group = Path(settings["slice"]) / name
    group.mkdir(parents=True, exist_ok=True)
    for above in (group.parent.parent, group.parent):
        with contextlib.suppress(OSError):  # a hierarchy without controllers has none to hand down
            (above / "cgroup.subtree_control").write_text("+cpu +memory +pids")
    argv = settings.get("instead") or read_command(name.split("@")[1].removesuffix(".service"))
    pid = os.fork()
    if pid:
        (HERE / f"{name}.pid").write_text(str(pid))
        return
    os.setsid()
    (group / "cgroup.procs").write_text("0")
    log = os.open(HERE / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for fd, target in ((os.open(os.devnull, os.O_RDONLY), 0), (log, 1), (log, 2)):
        os.dup2(fd, target)
    os.closerange(3, 256)
    # What systemd would give it: none of this may get through to the zygote.
    os.execve(argv[0], argv, {"PATH": "/usr/bin", "INVOCATION_ID": "0", "JOURNAL_STREAM": "1:2"})


def read_pid(name: str) -> int:
    """The unit's main process while it runs, else 0."""
    try:
        pid = int((HERE / f"{name}.pid").read_text())
        return 0 if os.waitpid(pid, os.WNOHANG)[0] else pid
    except (OSError, ValueError):
        return 0


def answer(words: list[str]) -> tuple[int, str]:
    """The exit status and output of one call."""
    if refusal := read_settings().get("refuse"):
        return 1, refusal
    verb, name = [word for word in words if not word.startswith("--")]
    if verb == "start":
        start(name)
    elif verb == "stop" and (pid := read_pid(name)):
        os.kill(pid, signal.SIGTERM)
    elif verb == "show":
        return 0, f"ActiveState={'active' if read_pid(name) else 'failed'}\nResult=exit-code"
    return 0, ""


def serve() -> None:
    """Be the manager until killed."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(ADDRESS)
    listener.listen()
    print("ready", flush=True)
    while True:
        call, _ = listener.accept()
        with call:
            words = json.loads(call.recv(65536))
            with (HERE / "calls.log").open("a") as log:
                log.write(shlex.join(words) + "\n")
            call.send(json.dumps(answer(words)).encode())


def ask() -> None:
    """Be systemctl."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as call:
        call.connect(ADDRESS)
        call.send(json.dumps(sys.argv[1:]).encode())
        status, text = json.loads(call.recv(65536))
    print(text)
    sys.exit(status)


if sys.argv[1:] == ["serve"]:
    serve()
else:
    ask()
