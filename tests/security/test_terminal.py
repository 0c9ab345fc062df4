"""Attempts on the operator: text of a tenant's in errors, events and logs, on a real terminal and as JSON."""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bedsit import BedsitError, Client
from bedsit.cli.text import neutralise
from tests_support.attempts import attempt
from tests_support.box import Box
from tests_support.bundles import write_bundle

ONE = {"x": np.array([1.0], np.float32)}
HOSTILE = (
    "\x1b]0;pwned\x07\x1b[2J\x1b[31mred\r\n2026-01-01T00:00:00Z  tenant.deleted  victim"
    "\x9b1;1H\u202egpj.exe\u200b\x00end"
)
SAY = f"""
HOSTILE = {HOSTILE!r}
import sys

def build(bundle):
    print(HOSTILE)
    if bundle.manifest.name == "broken":
        raise RuntimeError(HOSTILE)
    def call(x):
        print(HOSTILE, file=sys.stderr)
        raise RuntimeError(HOSTILE)
    return call
"""
#: What of ours may be on a terminal beside printable text: colours, a line drawn anew, the cursor hidden and shown.
OURS = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\x1b\[[012]?K|\x1b\[\d*[AF]|\r|\n")
COMMANDS = {
    "events": ("events",),
    "logs": ("logs", "loud"),
    "ps": ("ps",),
    "status": ("status",),
    "tenant show": ("tenant", "show", "loud"),
    "model list": ("model", "list", "loud"),
    "infer": ("infer", "loud/fine", "-i", "x=[1]"),
}
TEXT = {
    "number": "231",
    "title": "steer the operator's terminal by errors, events, logs and answers",
    "first": "the daemon and init make text printable",
    "second": "so does the one file of the command line that prints",
}


@pytest.fixture(scope="module")
def loud(shared_box: Box, tmp_path_factory: pytest.TempPathFactory) -> Box:
    """A box on which tenant ``loud`` has said all that it could, wherever it could."""
    folder = tmp_path_factory.mktemp("loud")
    shared_box.json("tenant", "create", "loud", "--memory", "256MiB")
    assert shared_box.run("model", "deploy", "loud", str(write_bundle(folder, "broken", SAY))).returncode == 1
    shared_box.json("model", "deploy", "loud", str(write_bundle(folder, "fine", SAY)))
    with Client("loud", run_dir=str(shared_box.run_dir)) as client, contextlib.suppress(BedsitError):
        client.infer("fine", ONE, timeout_s=30)
    return shared_box


def show(box: Box, *words: str) -> str:
    """What a command writes on a terminal, from its start to its end."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "bedsit.cli.main", *words],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={"PATH": os.environ["PATH"], "TERM": "xterm", "BEDSIT_RUN_DIR": str(box.run_dir)},
        start_new_session=True,
    ):
        os.close(theirs)
        said = b""
        with contextlib.suppress(OSError):  # EIO: the other side is closed
            while piece := os.read(ours, 65536):
                said += piece
    os.close(ours)
    return said.decode()


@attempt(**TEXT, part="attack", outcome="escaped")
@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_nothing_of_a_tenants_steers_a_terminal(loud: Box, words: tuple[str, ...]) -> None:
    """Behind our own colours there is nothing but printable text, and the forged event is no line of its own."""
    text = show(loud, *words)

    assert OURS.sub("", text).isprintable()
    assert "\x1b[31mred" not in text
    assert not re.search(r"^2026-01-01", text, re.MULTILINE)


@attempt(**TEXT, part="attack", outcome="one document")
@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_json_stays_json(loud: Box, words: tuple[str, ...]) -> None:
    """With ``-o json`` there is one document, or one error, without a raw control character in it."""
    done = loud.run(*words, "-o", "json")

    for said in filter(None, (done.stdout, done.stderr)):
        assert said.replace("\n", "").isprintable()
        json.loads(said)


@attempt(**TEXT, part="twin", outcome="shown")
def test_the_words_are_still_there(loud: Box) -> None:
    """What it said can be read, with what steers made visible."""
    text = show(loud, "logs", "loud")

    assert r"\x1b]0;pwned" in text
    assert "gpj.exe" in text


@attempt(**TEXT, part="removed", outcome="the command line escapes it")
def test_the_command_line_alone_would_do() -> None:
    """Text that reached the command line as it was said is printed escaped."""
    shown = neutralise(HOSTILE)

    assert shown.isprintable()
    assert r"\x1b]0;pwned\x07" in shown


@attempt(**TEXT, part="removed", outcome="the terminal is steered")
def test_without_both_a_terminal_is_steered(tmp_path: Path) -> None:
    """Printed raw, the same text has what the attack's assertion looks for."""
    (tmp_path / "raw").write_text(HOSTILE)
    raw = (tmp_path / "raw").read_text()

    assert not OURS.sub("", raw).isprintable()


SHARED = {
    "number": "232",
    "title": "end a trusted process by cutting memory that it has mapped (SIGBUS)",
    "first": "no trusted process maps what a worker can cut",
    "second": "seals",
}


def mapped(pid: int) -> list[str]:
    """What a process has mapped shared, by name; the system's own files, which are root's, do not count."""
    rows = (line.split(None, 5) for line in Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines())
    return [row[5] for row in rows if len(row) == 6 and row[1][3] == "s" and not row[5].startswith("/usr/")]


@attempt(**SHARED, part="attack", outcome="nothing shared is mapped")
def test_no_trusted_process_maps_what_is_shared(loud: Box) -> None:
    """While an arena is in use, zygote and inits map nothing shared, the daemon only its own database.

    And the router only its lease pages: no other user may write to them, or to the folder that they are in.
    """
    with Client("loud", run_dir=str(loud.run_dir)) as client:
        with contextlib.suppress(BedsitError):
            client.infer("fine", {"x": np.ones(100_000, np.float32)}, timeout_s=30)
        status, slots = loud.status(), loud.admin.call("ps")
        daemon = loud.daemon_pid()
        loud.admin.close()
        assert daemon is not None
        inits = [parent_of(slot["worker_pid"]) for slot in slots]
        for pid in (status["zygote"]["pid"], *inits):
            assert mapped(pid) == [], pid
        router = status["router"]["pid"]
        for page in map(Path, mapped(router)):
            assert page.parent.parent == loud.run_dir / "slots"
            for path, mode in ((page, 0o644), (page.parent, 0o750)):
                assert path.stat().st_uid == Path(f"/proc/{router}").stat().st_uid
                assert path.stat().st_mode & 0o777 == mode
        assert all(name.startswith(str(loud.state_dir)) for name in mapped(daemon))


def parent_of(pid: int) -> int:
    """The init of a worker."""
    return int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])


@attempt(**SHARED, part="twin", outcome="client and worker do")
def test_the_client_maps_its_arena(loud: Box) -> None:
    """Who the memory is for has it mapped; its seals keep it whole."""
    with Client("loud", run_dir=str(loud.run_dir)) as client:
        client.empty(100_000)
        assert any("bedsit-arena" in name for name in mapped(os.getpid()))


@attempt(**SHARED, part="removed", outcome="SIGBUS")
def test_who_maps_what_can_be_cut_is_ended() -> None:
    """A process that maps a memfd without seals is ended as soon as somebody cuts it."""
    program = """
import mmap, os
fd = os.memfd_create("arena")
os.truncate(fd, 4096)
memory = mmap.mmap(fd, 4096)
os.truncate(fd, 0)
memory[0]
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGBUS
