"""The part of the GPU's checks that needs no GPU: the run, its deadlines and its table, peers, and the arbiter."""

import importlib
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path

import pytest

from tests.gpu.checks.leases import Tenant, arbitrate
from tests.gpu.cuda import is_here
from tests.gpu.figures import jain, merge, percentile, summarise
from tests.gpu.kernel_log import find_xids
from tests.gpu.kernels import write_ptx
from tests.gpu.peer import Peer, PeerError
from tests.gpu.plan import CHECKS, Check
from tests.gpu.report import Report
from tests.gpu.row import Row, read_row, render_table
from tests.gpu.run import run_checks, show
from tests.gpu.worker import BYE, DONE, GRANT, OVER, WANT

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "tests/gpu"
#: What a check's process does, by name; argv is: this, "check", the name, the scale.
STUB = """
import json, os, signal, subprocess, sys
def say(what): print(json.dumps({"row": dict(what=what, figure="1", expect="", verdict="seen", data={})}), flush=True)
name, scale = sys.argv[2:]
if name == "well":
    say("a")
    print(json.dumps({"data": {"scale": scale}}))
    say("b")
elif name == "hangs":
    say("a")
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    print(json.dumps({"data": {"child": child.pid}}), flush=True)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pause()
elif name == "crashes":
    say("a")
    print("last words", file=sys.stderr, flush=True)
    os.abort()
elif name == "leaves":
    subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    say("a")
elif name == "babbles":
    print("no row")
    sys.exit(3)
"""


def run_stub(*names: str, within_s: float = 30, seconds: float = 300) -> dict[str, tuple[list[Row], dict[str, object]]]:
    """What the run says of checks that do as the stub does."""
    checks = {name: Check(f"the title of {name}", "", within_s) for name in names}
    outcomes = list(run_checks(names, seconds, checks, (sys.executable, "-c", STUB)))
    assert [outcome.name for outcome in outcomes] == list(names)
    return {outcome.name: (outcome.rows, outcome.data) for outcome in outcomes}


@pytest.mark.parametrize("command", [("-m", "tests.gpu.run"), ("tests/gpu",)])
def test_without_a_driver_it_says_so_and_leaves_well(command: tuple[str, ...], tmp_path: Path) -> None:
    """One line, exit status 0, no report."""
    if is_here():
        pytest.skip("a NVIDIA driver is here")
    report = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, *command, "--json", report], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("no NVIDIA GPU: ")
    assert done.stdout.count("\n") == 1
    assert not report.exists()


def test_an_unknown_check_is_refused_before_anything_runs() -> None:
    """A typing error costs no GPU time."""
    command = [sys.executable, "-m", "tests.gpu.run", "--only", "T99"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no such check: T99" in done.stderr


def test_what_a_check_says_becomes_rows_and_data() -> None:
    """And it hears how long the run is meant to be."""
    rows, data = run_stub("well", seconds=150)["well"]
    assert [row.what for row in rows] == ["a", "b"]
    assert data["scale"] == "0.5"


def test_a_check_that_hangs_is_ended_with_all_that_it_started() -> None:
    """What it had said stays, and a row tells why there is no more."""
    rows, data = run_stub("hangs", within_s=2)["hangs"]
    assert [row.verdict for row in rows] == ["seen", "could not"]
    assert rows[1].what == "the title of hangs"
    assert rows[1].figure == "not done after 2 s, killed"
    assert not is_running(int(str(data["child"])))


def is_running(pid: int) -> bool:
    """Whether it is more than an exit status that nobody fetched."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


def test_a_check_that_crashes_is_no_end_of_the_run() -> None:
    """The signal and its last words are a row, and the next check runs."""
    outcomes = run_stub("crashes", "babbles", "nothing", "leaves", "well")
    assert [row.verdict for row in outcomes["crashes"][0]] == ["seen", "could not"]
    assert outcomes["crashes"][0][1].figure == "signal SIGABRT: last words"
    assert [row.figure for row in outcomes["babbles"][0]] == ["it said b'no row'", "exit status 3: "]
    assert [row.figure for row in outcomes["nothing"][0]] == ["it said nothing"]
    assert [row.verdict for row in outcomes["leaves"][0]] == ["seen"]
    assert len(outcomes["well"][0]) == 2


def test_a_run_stops_when_its_time_is_over() -> None:
    """No check starts then, and each has its row."""
    outcomes = run_stub("well", "crashes", seconds=0.1)
    assert [rows[0].figure for rows, _ in outcomes.values()] == ["no time was left"] * 2


def test_the_table_has_every_row_and_counts_the_verdicts() -> None:
    """From the report as from the run; long figures are cut in the table only."""
    rows = [Row("a", "1 ms", "2 ms", "ok", {"n": 1}), Row("b", "x\n" * 100, verdict="could not")]
    table = render_table([("T1", rows), ("T2", [Row("c", "3")])])
    lines = table.splitlines()
    assert lines[0].split() == ["check", "what", "figure", "expectation", "verdict"]
    assert lines[1].split() == ["T1", "a", "1", "ms", "2", "ms", "ok"]
    assert "…" in lines[2]
    assert lines[-1] == "1 ok, 0 differs, 1 could not, 1 seen"
    checks = [{"name": "T1", "rows": json.loads(json.dumps([row.as_json() for row in rows]))}]
    assert show({"checks": checks, "when": "now", "took_s": 1.0}).startswith(render_table([("T1", rows)]))
    assert read_row(rows[0].as_json()) == rows[0]
    with pytest.raises(ValueError, match="no such verdict"):
        read_row(rows[0].as_json() | {"verdict": "perhaps"})


def test_a_step_that_fails_is_a_row_with_the_exception() -> None:
    """The steps after it run."""
    out = StringIO()
    report = Report(out, 0.5)
    with report.step("first"):
        raise KeyError("gone")
    with report.step("second"):
        report.row("second", "2", "2", ok=True, n=report.times(10, 1))
    first, second = (json.loads(line)["row"] for line in out.getvalue().splitlines())
    assert (first["verdict"], first["figure"]) == ("could not", first["figure"])
    assert re.fullmatch(r"KeyError: 'gone' \(test_run\.py:\d+\)", first["figure"])
    assert "Traceback" in first["data"]["traceback"]
    assert (second["verdict"], second["data"]) == ("ok", {"n": 5})


def test_every_check_and_every_peer_is_there() -> None:
    """Each name in the plan and in the checks leads to a function with its sentence."""
    programs = {f"checks.{check.program}" for check in CHECKS.values()}
    for file in [*FOLDER.glob("*.py"), *FOLDER.glob("checks/*.py")]:
        programs |= set(re.findall(r'\bPeer\(\s*"([\w.]+:\w+)"', file.read_text()))
    for program in programs:
        module, _, function = program.partition(":")
        found = getattr(importlib.import_module(f"tests.gpu.{module}"), function)
        assert (found.__doc__ or "").partition("\n")[0].endswith("."), program
    named = {file.stem for file in FOLDER.glob("checks/*.py")}
    assert named == {check.program.partition(":")[0] for check in CHECKS.values()}


def test_a_model_leaves_and_comes_back_by_the_workers_own_code() -> None:
    """As on a GPU, from the host to the host; without a driver it is the only run of it."""
    with Peer("checks.idle:tenant", wait_s=60.0) as target:
        opened = target.ask("open", gib=0.1, device="cpu")
        assert opened["size"] == 3 << 25
        first = target.ask("infer", device="cpu")["sum"]
        assert first == pytest.approx(4.096, rel=0.01)
        for _ in range(2):
            assert target.ask("leave")["away"]
            assert target.ask("infer", device="cpu")["sum"] == first


def test_the_kernels_are_complete() -> None:
    """No placeholder is left, and braces match."""
    text = write_ptx()
    assert not re.search(r"\b(UNROLLED|STRIDE|COUNTED|COUNT_A|SUMMED|ROOM|WORDS|REG)\b", text)
    assert text.count("{") == text.count("}")
    assert len(re.findall(r"\.visible \.entry", text)) == 8


def test_a_peer_answers_fails_and_dies() -> None:
    """Its errors arrive as what they are, with where; so does its end, and its silence has a deadline."""
    with Peer("checks.nodes:start") as peer:
        assert len(peer.ask("look")["threads"]) == 1
        with pytest.raises(PeerError, match="KeyError: 'sing'"):
            peer.ask("sing")
        peer.stop()
        with pytest.raises(TimeoutError, match=r"checks\.nodes:start .* did not answer within 0\.1 s"):
            peer.ask("look", wait_s=0.1)
        peer.go()
        # Not the late answer, which has a number of its own.
        assert peer.ask("look")["mapped"] == []
        peer.stop()
        peer.tell("look")
        with pytest.raises(TimeoutError):
            peer.hear(0.1)
        peer.go()
        assert peer.hear()["mapped"] == []
        peer.kill()
        with pytest.raises(PeerError, match="ended with -9"):
            peer.ask("look")


@contextmanager
def tenants_that_lease(count: int, times: int) -> Iterator[list[socket.socket]]:
    """The arbiter's ends of sockets at whose other ends somebody takes so many leases and leaves."""

    def lease(sock: socket.socket) -> None:
        for _ in range(times):
            sock.send(WANT)
            assert sock.recv(16) == GRANT
            sock.send(DONE)
        sock.send(WANT)
        sock.send(OVER)
        while sock.recv(16) != BYE:
            pass

    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(count)]
    threads = [threading.Thread(target=lease, args=(theirs,)) for _, theirs in pairs]
    for thread in threads:
        thread.start()
    yield [ours for ours, _ in pairs]
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    for pair in pairs:
        for sock in pair:
            sock.close()


@pytest.mark.parametrize("policy", ["fcfs", "sfq"])
def test_the_arbiter_serves_everybody_until_they_leave(policy: str) -> None:
    """Also one that leaves while it waits, and with a grant already on its way."""
    with tenants_that_lease(3, 20) as sockets:
        table = {sock: Tenant() for sock in sockets}
        idle_s = arbitrate(table, policy, time.monotonic() + 10)  # type: ignore[arg-type]
    assert all(tenant.is_over and tenant.charged_ms > 0 for tenant in table.values())
    assert idle_s >= 0


def test_the_arbiter_gives_up_on_those_who_never_leave() -> None:
    """A worker that died must not hold the run."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, pytest.raises(TimeoutError):
        arbitrate({ours: Tenant()}, "sfq", time.monotonic() + 0.1)


def test_figures() -> None:
    """Percentiles, Jain's index and sums of several processes, also of nothing."""
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert summarise([]) == {"n": 0, "p50": 0.0, "p90": 0.0, "p99": 0.0, "max": 0.0, "mean": 0.0}
    assert jain([1.0, 1.0, 1.0]) == pytest.approx(1.0)
    assert jain([1.0, 0.0]) == 0.5
    assert jain([]) == 0.0
    merged = merge([summarise([1.0]), summarise([3.0]), summarise([])])
    assert (merged["n"], merged["p50"], merged["max"]) == (2, 2.0, 3.0)


def test_xids_are_found_in_the_driver_s_lines() -> None:
    """And nothing else is taken for one."""
    lines = [
        "NVRM: Xid (PCI:0000:00:05): 31, pid=1234, name=python3, Ch 00000008, intr 00000000. MMU Fault",
        "NVRM: GPU at PCI:0000:00:05: GPU-0123",
        "nvidia-uvm: Loaded the UVM driver, major device number 510.",
    ]
    assert find_xids(lines) == [31]
