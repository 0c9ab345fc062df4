"""A small real server that speaks the admin protocol over a UNIX socket with scripted answers.

In a test it is a thread (``FakeDaemon``); as a program it stands in for bedsitd under ``bedsit up``: it keeps what the
real one keeps (a record per slot, the router's folder), so that the keeper sees the difference between dying and going.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bedsit.ipc.errors import BedsitError, error
from bedsit.ipc.frames import recv_frame, send_frame

Answer = Any
Handler = Callable[[dict[str, Any], socket.socket], Iterator[dict[str, Any]]]


class FakeDaemon:
    """Answers on *path* until closed. ``script`` maps an operation to a result, an error, frames, or a handler.

    ``heard`` collects (operation, arguments); ``bodies`` the bytes that were uploaded.
    """

    def __init__(self, path: Path) -> None:
        self.script: dict[str, Answer] = {"ping": {"version": "0.1.0", "pid": os.getpid(), "uptime_s": 1.0}}
        self.heard: list[tuple[str, dict[str, Any]]] = []
        self.bodies: list[bytes] = []
        self.went_away = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(os.fspath(path))
        self._listener.listen(16)
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        """Hang up on everybody and stop listening; the second time nothing happens."""
        if self._listener.fileno() < 0:
            return
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                while (request := recv_frame(connection)) is not None:
                    for frame in self._answer(request, connection):
                        send_frame(connection, frame)
            except (OSError, BedsitError):
                pass
            self.went_away.set()

    def _answer(self, request: dict[str, Any], connection: socket.socket) -> Iterator[dict[str, Any]]:
        assert request["v"] == 1
        op, args = request["op"], request["args"]
        self.heard.append((op, args))
        answer = self.script.get(op, error("request.invalid", f"unknown operation {op}"))
        if callable(answer):
            yield from answer(args, connection)
        elif isinstance(answer, BedsitError):
            yield {"ok": False, "error": answer.to_wire()}
        elif isinstance(answer, list) and answer and isinstance(answer[-1], dict) and "ok" in answer[-1]:
            yield from answer
        else:
            yield {"ok": True, "result": answer}

    def take_body(self, size: int, connection: socket.socket) -> bytes:
        """Read an upload as the daemon does: frames of raw bytes until *size* bytes are there."""
        body = bytearray()
        while len(body) < size:
            chunk = recv_frame(connection)
            if not isinstance(chunk, bytes) or len(chunk) > 1 << 20:
                raise OSError("the upload broke off")
            body += chunk
        self.bodies.append(bytes(body))
        return bytes(body)


def main() -> int:
    """Stand in for bedsitd."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--config", type=Path)
    options = parser.parse_args()
    run: Path = options.run_dir
    if options.config is not None and "wrong" in options.config.read_text():
        refusal = {"event": "daemon.refused", "code": "config.invalid", "message": "unknown key 'wrong'", "hint": "no"}
        print(json.dumps(refusal), file=sys.stderr, flush=True)
        return 78
    if options.config is not None and "taken" in options.config.read_text():
        refusal = {"event": "daemon.refused", "code": "daemon.already_running", "message": "another one", "hint": "no"}
        print(json.dumps(refusal), file=sys.stderr, flush=True)
        return 75
    (run / "router").mkdir(exist_ok=True)
    (run / "records").mkdir(exist_ok=True)
    (run / "records" / "s00000000.json").write_text("{}")
    (run / "admin.sock").unlink(missing_ok=True)
    with (run / "starts").open("a") as starts:
        starts.write(f"daemon {os.getpid()}\n")
    print(json.dumps({"event": "daemon.started", "level": "info", "pid": os.getpid()}), file=sys.stderr, flush=True)
    daemon = FakeDaemon(run / "admin.sock")
    gone = threading.Event()

    def status(_args: dict[str, Any], _connection: socket.socket) -> Iterator[dict[str, Any]]:
        router = _find_router(run)
        yield {
            "ok": True,
            "result": {
                "version": "0.1.0",
                "pid": os.getpid(),
                "uptime_s": 1.0,
                "run_dir": str(run),
                "state_dir": str(options.state_dir),
                "router": {"connected": router is not None, "pid": router},
                "zygote": {"generation": 1, "pid": os.getpid(), "forks": 2},
                "pool": {"target": 2, "blank": 0 if (run / "never-ready").exists() else 2, "building": 0},
            },
        }

    def down(_args: dict[str, Any], _connection: socket.socket) -> Iterator[dict[str, Any]]:
        yield {"progress": {"phase": "slots end", "ms": None}}
        (run / "records" / "s00000000.json").unlink()
        router = _find_router(run)
        if router is not None:
            os.kill(router, signal.SIGTERM)
        yield {"progress": {"phase": "slots end", "ms": 3.0}}
        yield {"ok": True, "result": {}}
        gone.set()

    daemon.script |= {"status": status, "down": down, "events": [{"ok": True, "result": None}]}
    signal.signal(signal.SIGTERM, lambda *_: gone.set())
    while not gone.wait(0.05):
        if (run / "fork").exists() and not (run / "forked").exists():
            orphan = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
            (run / "forked.new").write_text(str(orphan.pid))
            (run / "forked.new").rename(run / "forked")
    time.sleep(0.02)  # the answer to "down" is on its way
    (run / "admin.sock").unlink(missing_ok=True)
    os._exit(0)


def _find_router(run: Path) -> int | None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(os.fspath(run / "router" / "door.sock"))
        except OSError:
            return None
        return int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], sys.byteorder)


if __name__ == "__main__":
    sys.exit(main())
