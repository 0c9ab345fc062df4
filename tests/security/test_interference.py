"""Attempts of a tenant's code on our code around it: the worker is its own, and nobody else believes what it says.

All the while another tenant sends requests, and every answer is checked.
"""

import contextlib
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

from bedsit import BedsitError, Client
from bedsit.ipc import wire
from bedsit.ipc.manifest import decode_manifest
from bedsit.ipc.wire import Kind
from bedsit.supervisor.reports import clean_text, read_failure
from tests_support.attempts import attempt
from tests_support.box import Box
from tests_support.bundles import DOUBLE, write_bundle

ONE = {"x": np.array([21.0], np.float32)}
#: What a caller may get from a worker that broke itself.
OWN_FAULT = {"worker.crashed", "deadline.exceeded", "model.failed", "output.invalid", "wire.malformed"}

# Finds our own objects in the frames below the tenant's code.
REACH = """
import ctypes, os, socket, struct, sys, time
from bedsit.ipc import wire
from bedsit.ipc.slot import Report, encode_report
from bedsit.ipc.wire import Kind

def reach(name):
    frame = sys._getframe()
    while name not in frame.f_locals:
        frame = frame.f_back
    return frame.f_locals[name]
"""
LOADING = REACH + "\ndef build(bundle):\n    control = reach('control')\n{}\n    return lambda x: x * 2\n"
CALLING = (
    REACH
    + """
def build(bundle):
    def call(x):
        order = reach("orders")[0]
        ident, send = wire.read_envelope(order.packet).id, order.reply
{}
        return x * 2
    return call
"""
)

REPORTS = {
    "a failure in foreign words": """
    control.send(encode_report(Report.FAILED, 0, b"permission.denied\\n\\x1b]0;pwned\\x07\\xe2\\x80\\xaegpj"))
    time.sleep(60)""",
    "more reports than anybody reads": """
    for n in range(600): control.send(encode_report(Report.PROGRESS, 0, b"\\x1b[2J%d" % n))
    for n in range(100): control.send(bytes([n]) * 60_000)
    raise SystemExit(7)""",
    "models that it does not have": """
    for index in (1, 2, 65535): control.send(encode_report(Report.LOADED, index, b"x" * 60_000))
    control.send(b"\\xff")
    control.send(bytes(100_000))
    os._exit(7)""",
    "nothing: it hangs up on its init": """
    control.shutdown(socket.SHUT_RDWR)""",
    "an empty packet, which means the end": """
    control.send(b"")""",
}
ANSWERS = {
    "its own twice, and again": """
        for _ in range(3):
            send(wire.pack_packet(Kind.RESPONSE, ident))""",
    "answers that nobody asked for": """
        for n in range(3000):
            send(wire.pack_packet(Kind.RESPONSE, (n << 50) + 12345, b"\\xc1" * 40, tensors=1))""",
    "answers to others' requests": """
        for n in range(ident, ident + 3000):
            send(wire.pack_packet(Kind.ERROR, n + 1, b"\\xc1" * 40))""",
    "packets that are not its to send": """
        for kind in (Kind.READY, Kind.CANCEL, Kind.REQUEST, Kind.READY) * 200:
            send(wire.pack_packet(kind, ident))""",
    "no packets at all": """
        for data in (b"x", bytes(40), b"\\xff" * 65536) * 100 + (b"",):
            send(data)""",
    "acknowledgements of others' arenas": """
        link = reach("lanes")._link
        for n in range(64): link.send(struct.pack("<BxxxIQ", 3, n, 0))
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
            other.connect("/run/slot/fd.sock")
            other.setblocking(False)
            try: other.send(bytes(16))
            except OSError: pass""",
}
BROKEN = {
    "msgpack raises": """
        import msgpack
        def refuse(*_, **__): raise RuntimeError("no")
        msgpack.packb = refuse""",
    "answers are something else": """
        sys.modules["bedsit.sandbox.worker.calls"]._reply = lambda *_: send(b"junk")""",
    "the wire packs nonsense": """
        wire.pack_tensors = wire.pack_packet = lambda *_, **__: b"\\x00" * 64""",
    "its descriptors are closed": """
        os.closerange(3, 1024)""",
    "its output is closed and replaced": """
        os.closerange(0, 3)
        sys.stdout = sys.stderr = None
        raise RuntimeError("who will print this?")""",
    "a trace function raises": """
        def trace(*_): raise RuntimeError("traced")
        sys.settrace(trace)""",
    "its first thread ends, another one stays": """
        import threading
        threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
        ctypes.CDLL(None).syscall(60 if os.uname().machine == "x86_64" else 93, 0)""",
    "it ends with a status that means something": """
        os._exit(137)""",
    "it ends by the signal of an empty stack": """
        ctypes.string_at(0)""",
}
JUNK = {"junk": b"\xc1" * 100, "another model's": b"\x81\xa4name\xa6victim", "60 KB": b"\xda\xea\x60" + b"x" * 60_000}


class Bystander:
    """Tenant ``victim``, which goes on calling its model from a thread of its own and checks each answer."""

    def __init__(self, box: Box) -> None:
        self._box = box
        self._pids = _find_pids(box)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._call)
        self.right = 0
        self.wrong: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        assert self.wrong == []
        assert self.right > 0
        assert _find_pids(self._box) == self._pids

    def _call(self) -> None:
        with Client("victim", run_dir=str(self._box.run_dir)) as client:
            for number in itertools.count(1):
                try:
                    answer = client.infer("double", {"x": np.array([number], np.float32)}, timeout_s=30)["y"]
                except BedsitError as e:
                    self.wrong.append(f"{e.code}: {e}")
                    return
                if answer.tolist() != [2.0 * number]:
                    self.wrong.append(f"{answer}, not {2 * number}")
                    return
                self.right += 1
                if self._stop.wait(0.001):
                    return


def _find_pids(box: Box) -> tuple[int | None, int]:
    """Daemon and router: both have to be the same ones afterwards."""
    pids = box.daemon_pid(), int(box.status()["router"]["pid"])
    box.admin.close()
    return pids


@pytest.fixture(scope="module")
def room(shared_box: Box, tmp_path_factory: pytest.TempPathFactory) -> Box:
    """A box with the tenant ``victim``."""
    shared_box.json("tenant", "create", "victim", "--memory", "256MiB")
    folder = write_bundle(tmp_path_factory.mktemp("victim"), "double", DOUBLE)
    shared_box.json("model", "deploy", "victim", str(folder))
    return shared_box


@pytest.fixture
def bystander(room: Box) -> Iterator[Bystander]:
    """The other tenant is served all the while, and daemon and router stay who they are."""
    with Bystander(room) as made:
        yield made


@pytest.fixture
def rogue(room: Box) -> Iterator[str]:
    """A tenant of the test's own, gone afterwards."""
    room.admin.call("tenant.create", name="rogue", memory_bytes=256 << 20, cpus=0.5)
    yield "rogue"
    room.admin.call("tenant.delete", name="rogue")
    room.admin.close()  # a connection that is kept would be a leak of this test's


def deploy(box: Box, folder: Path, code: str) -> tuple[int, str]:
    """Deploy *code* as tenant ``rogue``'s model; the exit code and what was said."""
    done = box.run("model", "deploy", "rogue", str(write_bundle(folder, "model", code, idempotent=False)))
    return done.returncode, done.stdout + done.stderr


def ask(box: Box, timeout_s: float = 20) -> str:
    """One request to ``rogue``'s model: "right", what was wrong, or the error's code."""
    with Client("rogue", run_dir=str(box.run_dir)) as client:
        try:
            answer = client.infer("model", ONE, timeout_s=timeout_s)
        except BedsitError as e:
            return e.code
    return "right" if answer and answer["y"].tolist() == [42.0] else f"{answer}"


def last_event(box: Box) -> int:
    """The number of the newest event."""
    return int(list(box.admin.stream("events", limit=1))[-1]["id"])


def misbehaved_since(box: Box, event: int) -> list[dict[str, Any]]:
    """What the router told of lying workers after that event."""
    return [e for e in box.admin.stream("events") if e["kind"] == "slot.misbehaved" and e["id"] > event]


REPORTED = {
    "number": "221",
    "title": "report what is not so while it loads",
    "first": "a report counts for its own slot",
    "second": "codes and text are checked",
}
ANSWERED = {
    "number": "222",
    "title": "answer what it was not asked: invented ids, others' ids, twice",
    "first": "the socket is the identity; only ids in flight there",
    "second": "the client knows its own ids",
}
LATE = {
    "number": "223",
    "title": "answer late, after its caller gave up",
    "first": "one final answer for each request",
    "second": "the client knows its own ids",
}
BREAK = {
    "number": "224",
    "title": "break our code in its worker, or hide behind a thread",
    "first": "nobody depends on it but its own tenant",
    "second": "deadlines",
}
CLAIMED = {
    "number": "225",
    "title": "claim another manifest, and to serve when it does not",
    "first": "the daemon stores a manifest unread",
    "second": "the client checks it",
}


@attempt(**REPORTED, part="attack", outcome="its own deploy fails, with a code of ours")
@pytest.mark.parametrize("code", REPORTS.values(), ids=REPORTS)
@pytest.mark.usefixtures("bystander", "rogue")
def test_forged_reports(room: Box, tmp_path: Path, code: str) -> None:
    """The deploy fails as the tenant's own fault, in printable words."""
    status, said = deploy(room, tmp_path, LOADING.format(code))

    assert status == 1
    assert "model.load_failed" in said or "worker.crashed" in said
    assert "permission.denied" not in said
    assert said.replace("\n", "").isprintable()


@attempt(**REPORTED, part="twin", outcome="deployed")
@pytest.mark.usefixtures("bystander", "rogue")
def test_an_honest_report(room: Box, tmp_path: Path) -> None:
    """A bundle that reports its progress a few times more is deployed and serves."""
    status, said = deploy(
        room, tmp_path, LOADING.format("\n    control.send(encode_report(Report.PROGRESS, 0, b'half-way'))")
    )

    assert (status, ask(room)) == (0, "right"), said


@attempt(**REPORTED, part="removed", outcome="a foreign code becomes model.load_failed, steering becomes spaces")
def test_a_report_that_is_read_is_checked() -> None:
    """Believed as far as a slot's own fault goes: the code is one of those, the text has nothing that steers."""
    failure = read_failure(b"permission.denied\n\x1b]0;pwned\x07" + b"x" * 100_000)

    assert failure.code == "model.load_failed"
    assert failure.message.isprintable()
    assert len(failure.message) < 5000
    assert clean_text(b"\x1b[2J\xff\xe2\x80\xae") == "[2J\N{REPLACEMENT CHARACTER}"


@attempt(**ANSWERED, part="attack", outcome="dropped and counted")
@pytest.mark.parametrize("code", ANSWERS.values(), ids=ANSWERS)
@pytest.mark.usefixtures("bystander", "rogue")
def test_forged_answers(room: Box, tmp_path: Path, code: str) -> None:
    """The caller gets one answer: the worker's, or an error of that worker's own making; never anybody else's."""
    before = last_event(room)
    status, said = deploy(room, tmp_path, CALLING.format(code))
    assert status == 0, said

    outcomes = [ask(room, timeout_s=2) for _ in range(3)]

    assert set(outcomes) <= {"right", "{}", *OWN_FAULT}
    assert misbehaved_since(room, before)


@attempt(**ANSWERED, part="twin", outcome="answered")
@pytest.mark.usefixtures("bystander", "rogue")
def test_an_honest_answer(room: Box, tmp_path: Path) -> None:
    """A worker that only answers what it was asked has misbehaved in nothing."""
    before = last_event(room)
    status, said = deploy(room, tmp_path, CALLING.format("        assert ident > 0"))
    assert status == 0, said

    assert {ask(room) for _ in range(3)} == {"right"}
    assert not misbehaved_since(room, before)


@attempt(**ANSWERED, part="removed", outcome="the client drops what it does not know")
def test_a_client_drops_foreign_answers(room: Box) -> None:
    """Put straight into a client's session, past the router, an answer to no request of its own changes nothing."""
    with Client("victim", run_dir=str(room.run_dir)) as client:
        info = client.describe("double")
        link = client._link
        assert link is not None
        session = link.session
        pending, _ = session.begin(link.models[info.name, 0], None, ONE, 0)
        for ident in (0, pending.id + 1, 2**64 - 1):
            assert session.accept(wire.pack_packet(Kind.RESPONSE, ident)) is None
        assert not pending.done
        session.forget(pending)


@attempt(**LATE, part="attack", outcome="the late answer reaches nobody")
@pytest.mark.usefixtures("bystander", "rogue")
def test_late_answers(room: Box, tmp_path: Path) -> None:
    """A caller that gave up gets deadline.exceeded; the next request gets its own answer, not the late one."""
    slow = """
        if float(x[0]) < 0:
            time.sleep(0.6)
            for _ in range(3):
                send(wire.pack_packet(Kind.RESPONSE, ident))"""
    status, said = deploy(room, tmp_path, CALLING.format(slow))
    assert status == 0, said

    with Client("rogue", run_dir=str(room.run_dir)) as client:
        for _ in range(2):
            with pytest.raises(BedsitError) as caught:
                client.infer("model", {"x": np.array([-1.0], np.float32)}, timeout_s=0.1)
            assert caught.value.code == "deadline.exceeded"
            assert client.infer("model", ONE, timeout_s=30)["y"].tolist() == [42.0]


@attempt(**LATE, part="twin", outcome="answered")
@pytest.mark.usefixtures("bystander", "rogue")
def test_a_slow_answer_in_time(room: Box, tmp_path: Path) -> None:
    """The same model is slow within the caller's patience, and its answer counts."""
    status, said = deploy(room, tmp_path, CALLING.format("        time.sleep(0.3)"))

    assert (status, ask(room)) == (0, "right"), said


@attempt(**LATE, part="removed", outcome="the client's memory stays reserved until the final answer")
def test_a_withdrawn_request_keeps_its_memory(room: Box) -> None:
    """Past the router, a late answer finds a request that was withdrawn: it ends it, and gives nobody its bytes."""
    with Client("victim", run_dir=str(room.run_dir)) as client:
        info = client.describe("double")
        link = client._link
        assert link is not None
        session = link.session
        large = {"x": np.ones(100_000, np.float32)}
        free = session.arena.free_bytes()
        pending, _ = session.begin(link.models[info.name, 0], None, large, 0)
        session.withdraw(pending)
        assert session.arena.free_bytes() < free
        assert session.accept(wire.pack_packet(Kind.RESPONSE, pending.id)) is pending
        assert pending.outcome is None
        del pending
        assert session.arena.free_bytes() == free


@attempt(**BREAK, part="attack", outcome="its own caller gets an error with a code")
@pytest.mark.parametrize("code", BROKEN.values(), ids=BROKEN)
@pytest.mark.usefixtures("bystander", "rogue")
def test_broken_from_within(room: Box, tmp_path: Path, code: str) -> None:
    """Whatever it does to itself, its caller gets an error with a code of ours, and `bedsit` goes on telling of it."""
    status, said = deploy(room, tmp_path, CALLING.format(code))
    assert status == 0, said

    assert ask(room, timeout_s=2) in {"right", *OWN_FAULT}
    assert room.tenant("rogue")["name"] == "rogue"
    assert room.admin.call("ps")


@attempt(**BREAK, part="twin", outcome="answered")
@pytest.mark.usefixtures("bystander", "rogue")
def test_a_model_that_looks_around(room: Box, tmp_path: Path) -> None:
    """Reading our modules and starting a thread breaks nothing."""
    look = """
        import msgpack, threading
        thread = threading.Thread(target=msgpack.packb, args=([1, 2],))
        thread.start()
        thread.join()"""
    status, said = deploy(room, tmp_path, CALLING.format(look))

    assert (status, ask(room)) == (0, "right"), said


@attempt(**BREAK, part="removed", outcome="the worker itself is broken")
@pytest.mark.usefixtures("rogue")
def test_the_worker_itself_is_broken(room: Box, tmp_path: Path) -> None:
    """What bystanders do not notice did happen: the worker that broke itself is replaced by another one."""
    status, said = deploy(room, tmp_path, CALLING.format(BROKEN["it ends with a status that means something"]))
    assert status == 0, said

    assert ask(room) == "worker.crashed"
    died = [e for e in room.admin.stream("events", tenant="rogue") if e["kind"] == "slot.died"]
    assert "137" in died[-1]["text"]


@attempt(**CLAIMED, part="attack", outcome="an error at its own clients")
@pytest.mark.parametrize("manifest", JUNK.values(), ids=JUNK)
@pytest.mark.usefixtures("bystander", "rogue")
def test_forged_manifest(room: Box, tmp_path: Path, manifest: bytes) -> None:
    """Whatever it claims to be, its clients get an error with a code, and all commands still answer."""
    claim = f"""
    control.send(encode_report(Report.LOADED, 0, {manifest!r}))
    control.send(encode_report(Report.SERVING))
    time.sleep(60)"""
    status, said = deploy(room, tmp_path, LOADING.format(claim))

    if status == 0:
        assert ask(room, timeout_s=2) in {"wire.malformed", "bundle.invalid", "deadline.exceeded"}
    else:
        assert "error:" in said
    assert room.tenant("rogue")["name"] == "rogue"
    assert isinstance(room.admin.call("model.list", tenant="rogue"), list)
    shown = room.run("model", "show", "rogue/model")
    assert "Traceback" not in shown.stderr


@attempt(**CLAIMED, part="twin", outcome="described")
@pytest.mark.usefixtures("bystander", "rogue")
def test_an_honest_manifest(room: Box, tmp_path: Path) -> None:
    """A manifest that was declared reaches its clients."""
    status, said = deploy(room, tmp_path, DOUBLE)
    assert status == 0, said

    with Client("rogue", run_dir=str(room.run_dir)) as client:
        assert client.describe("model").name == "model"


@attempt(**CLAIMED, part="removed", outcome="wire.malformed or bundle.invalid")
@pytest.mark.parametrize("manifest", JUNK.values(), ids=JUNK)
def test_a_client_checks_a_manifest(manifest: bytes) -> None:
    """Past daemon and router, the client refuses what is no manifest."""
    with pytest.raises(BedsitError) as caught, contextlib.suppress(MemoryError):
        decode_manifest(manifest)
    assert caught.value.code in ("wire.malformed", "bundle.invalid")
