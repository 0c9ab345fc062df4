"""The comparison with other servers: what it reports, what it does with servers that fail, and that nothing is left."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from bench.rivals.http import Connection, RawCaller

ROOT = Path(__file__).parent.parent.parent
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
COMMON = {"name", "version", "commit", "machine", "when", "quick", "walls"}
NAMES = ["bedsit", "mosec", "litserve", "triton", "triton-shm", "torchserve", "mlserver", "bentoml", "ray"]
TARGET = {
    "tiny": {"p50_us", "p99_us", "rps_1", "rps_4", "rps_16", "one_core_p50_us"},
    "echo_1m": {"p50_us"},
    "echo_16m": {"p50_us"},
    "echo_64m": {"p50_us"},
    "batched": {"p50_us", "rps_16"},
    "victim_p99_us": {"alone", "beside_flood", "flood_rps"},
}
HEAD = b"HTTP/1.1 200 OK\r\n"
DEADLINE_S = 20

# A server as a rival is one, with the same models, in the standard library's words.
SERVER = """
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import numpy as np
from bench.rivals.models import load

calls = {}

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self):
        name = self.path[1:]
        call = calls.get(name) or calls.setdefault(name, load(name))
        y = call(np.frombuffer(self.rfile.read(int(self.headers["Content-Length"])), np.float32)).tobytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(y)))
        self.end_headers()
        self.wfile.write(y)

    def log_message(self, *words):
        pass

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
COMPARE = """
import json, sys
from functools import partial
from pathlib import Path
import psutil
from bench.peers import compare
from bench.rivals.contender import Contender
from bench.rivals.figures import Lengths, make_cases
from bench.rivals.http import RawCaller
from bench.rivals.models import MODELS
from bench.rivals.rival import Command, Rival
from bench.rivals.server import RivalServer

server, folder = sys.argv[1], Path(sys.argv[2])

def make(rival, purpose):
    return RivalServer(rival, Path(sys.executable), folder / (rival.name + purpose))

def serve(place, models):
    return [Command([place.python, "-c", server, place.ports[0]])]

def connect(place, model):
    return RawCaller(place.ports[0], "/" + model, MODELS[model].row_out)

rivals = [
    Rival("fine", ("fine==1",), serve, connect),
    Rival("broken", ("broken==2",), lambda place, _: [Command([place.python, "-c", "exit('no room')"])], connect),
    Rival("absent", ("absent==3",), lambda place, _: [Command([place.folder / "nowhere"])], connect),
    Rival("wrong", ("wrong==4",), serve, lambda place, model: RawCaller(place.ports[0], "/echo", MODELS[model].row_in)),
]
contenders = [
    Contender(rival.name, rival.version, partial(make, rival))
    for rival in rivals
]
compare(contenders, make_cases(), Lengths(0.02, 0.02, 0.02, 0.02), quick=True)
left = [process.cmdline() for process in psutil.Process().children(recursive=True)]
print(json.dumps({"targets": {c.name: c.summarise() for c in contenders}, "left": left}))
"""
KEEP = """
import os, sys, time
from pathlib import Path
from bench.rivals.keeper import find_tree, start_keeper, stop_keeper
from bench.rivals.rival import Command

folder = Path(sys.argv[1])
# One that detaches itself, as daemons do, and tells that it is there.
daemon = "import os, time; os.fork() and os._exit(0); os.setsid(); open('there', 'w').close(); time.sleep(600)"
command = [sys.executable, "-c", f"import os, time; os.fork() or exec({daemon!r}); time.sleep(600)"]
keeper = start_keeper([Command(command)], folder, folder.parent / "log")
while not (folder / "there").exists():
    time.sleep(0.01)
print(keeper, *find_tree(keeper), flush=True)
sys.stdin.readline()
stop_keeper(keeper)
"""


@contextmanager
def answer(*scripts: Sequence[bytes]) -> Iterator[int]:
    """A server that reads a request's bytes and answers with the next script, piece by piece; gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(DEADLINE_S)

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.settimeout(DEADLINE_S)
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for script in scripts:
                    if not peer.recv(1 << 16):
                        return
                    for piece in script:
                        peer.sendall(piece)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            thread.join()


def ask(*scripts: Sequence[bytes]) -> list[bytes]:
    """One request per script over one connection; gives the answers."""
    with answer(*scripts) as port:
        connection = Connection(port, "/model")
        try:
            return [bytes(connection.post(b"x")) for _ in scripts]
        finally:
            connection.close()


def one_by_one(data: bytes) -> list[bytes]:
    """Every byte a piece of its own."""
    return [data[at : at + 1] for at in range(len(data))]


def test_answers_of_known_length_come_one_after_the_other_over_one_connection() -> None:
    """Nothing of one answer is left for the next, in whatever pieces they come, empty ones included."""
    first, empty = HEAD + b"content-length: 5\r\n\r\nfirst", HEAD + b"Content-Length: 0\r\n\r\n"
    large = b"y" * 200_000
    scripts = [[first], one_by_one(first), [empty], [HEAD + b"Content-Length:200000\r\n\r\n" + large[:9], large[9:]]]
    assert ask(*scripts) == [b"first", b"first", b"", large]


def test_answers_in_chunks_are_put_together() -> None:
    """Chunk sizes in either case, with extensions and trailers, in whatever pieces, and larger than the buffer."""
    head = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    plain = (
        head + b"5\r\nfirst\r\nA\r\n and second\r\n".replace(b"A\r\n and second", b"B\r\n and second") + b"0\r\n\r\n"
    )
    fancy = head + b"2;name=value\r\nab\r\n1\r\nc\r\n0\r\nTrailer: one\r\nOther: two\r\n\r\n"
    large = b"z" * 300_000
    chunks = head + b"493e0\r\n" + large + b"\r\n3\r\nend\r\n0\r\n\r\n"
    answers = ask([plain], one_by_one(plain), one_by_one(fancy), [chunks[:70_000], chunks[70_000:]], [plain])
    assert answers == [b"first and second"] * 2 + [b"abc", large + b"end", b"first and second"]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (HEAD.replace(b"200 OK", b"503 Busy") + b"Content-Length: 8\r\n\r\nnot now!", "HTTP 503: not now!"),
        (HEAD + b"Connection: close\r\n\r\n", "without its length"),
        (HEAD + b"Content-Length: 8\r\n\r\nhalf", "closed"),
        (b"", "closed"),
    ],
)
def test_an_answer_that_is_none_is_an_error(script: bytes, words: str) -> None:
    """A refusal, an answer whose end nobody knows, one that breaks off, and none at all."""
    with pytest.raises((RuntimeError, ConnectionError), match=words):
        ask([script])


def test_a_raw_caller_gives_the_answer_its_shape() -> None:
    """Bytes become rows of as many columns as the model has, or as its input had."""
    y = np.arange(6, dtype=np.float32)
    head = HEAD + b"Content-Length: 24\r\n\r\n"
    for columns, shape in ((2, (3, 2)), (-1, (1, 6))):
        with answer([head + y.tobytes()]) as port:
            caller = RawCaller(port, "/model", columns)
            got = caller(np.zeros((1, 6), np.float32))
            caller.close()
        assert got.shape == shape
        assert (got.ravel() == y).all()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_servers_are_compared_and_those_that_fail_are_told_of(tmp_path: Path) -> None:
    """A server that serves gets every figure; the others get their reason; no process of any of them is left."""
    seen = json.loads(run_program(COMPARE, SERVER, tmp_path))
    targets = seen["targets"]

    assert seen["left"] == []
    check_target(targets["fine"])
    assert targets["fine"]["version"] == "1"
    assert set(targets["broken"]) == {"error", "version"}
    assert "no room" in targets["broken"]["error"]
    assert "nowhere" in targets["absent"]["error"]
    assert "wrong answer" in targets["wrong"]["error"]


@pytest.mark.parametrize("killed", [False, True])
def test_nothing_of_a_server_outlives_the_benchmark(tmp_path: Path, *, killed: bool) -> None:
    """Also what detached itself is ended with the server, and when the benchmark is killed."""
    folder = tmp_path / "folder"
    folder.mkdir()
    program = subprocess.Popen(
        [sys.executable, "-c", KEEP, folder], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with program:
        assert program.stdout is not None
        pids = [int(word) for word in program.stdout.readline().split()]
        pidfds = [os.pidfd_open(pid) for pid in pids]
        try:
            assert len(pids) >= 3  # the keeper, the server, and the one that detached itself
            if killed:
                program.kill()
            else:
                program.communicate("stop\n", timeout=DEADLINE_S)
            for pidfd in pidfds:
                assert select.select([pidfd], [], [], DEADLINE_S)[0], "it still runs"
        finally:
            for pidfd in pidfds:
                end(pidfd)
    assert program.returncode == (-signal.SIGKILL if killed else 0)
    assert not folder.exists()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_report_has_its_keys(tmp_path: Path) -> None:
    """A quick run exits 0 with every key of bedsit, and a reason for each server that it did not measure."""
    file = tmp_path / "report.json"
    options = ["--quick", "--json", file, "--targets", "bedsit,mosec", "--work", tmp_path / "work"]
    done = subprocess.run(
        [sys.executable, "-m", "bench.peers", *options], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())

    assert set(report) == COMMON | {"targets"}
    assert report["walls"]["pid_namespace"] == "on"
    assert sorted(report["targets"]) == sorted(NAMES)
    check_target(report["targets"].pop("bedsit"))
    assert "installs nothing" in report["targets"].pop("mosec")["error"]
    assert all(target["error"].startswith("left out") for target in report["targets"].values())
    assert "ray: not measured: left out" in done.stdout


def check_target(target: dict[str, object]) -> None:
    """Every key is there, and every figure was measured."""
    assert set(target) == {"version", "first_answer_s", *TARGET}
    for outer, keys in TARGET.items():
        figures = target[outer]
        assert isinstance(figures, dict)
        assert set(figures) == keys
        assert min(figures.values()) > 0


def run_program(program: str, *words: object) -> str:
    """Run *program* in an interpreter of its own, for it forks; gives what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, **ONE_THREAD},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def end(pidfd: int) -> None:
    """Kill what a pidfd refers to, if it is still there, and close it."""
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)
