"""What systemd passes is taken when it is of use, refused when it is not, and kept from children in any case."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bedsit.ipc.errors import BedsitError
from bedsit.ipc.heldlistener import check_place, turn_away

# Puts sockets where systemd would, takes the one called "door", and says what came of it.
CHILD = """
import json, os, socket, sys
from pathlib import Path
from bedsit.ipc.errors import BedsitError
from bedsit.ipc.heldlistener import take_held_listener

folder, kinds, count, names, pid = json.loads(sys.argv[1])
os.chdir(folder)
made = []
for number, kind in enumerate(kinds):
    if kind == "file":
        made.append(os.open(".", os.O_RDONLY))
        continue
    family = socket.AF_INET if kind == "inet" else socket.AF_UNIX
    sock = socket.socket(family, socket.SOCK_STREAM if kind in ("stream", "inet") else socket.SOCK_SEQPACKET)
    if family == socket.AF_UNIX:
        sock.bind(f"{number}.sock")
    if kind != "silent":
        sock.listen()
    made.append(sock.detach())
copies = [os.dup2(os.dup(fd), 40 + number) for number, fd in enumerate(made)]
os.closerange(3, 40)
for number, fd in enumerate(copies):
    os.dup2(fd, 3 + number)
os.closerange(40, 60)
os.environ |= {"LISTEN_PID": pid or str(os.getpid()), "LISTEN_FDS": count, "LISTEN_FDNAMES": names}
try:
    found = take_held_listener(os.environ, "door", socket.SOCK_SEQPACKET)
    told = {"at": found and found.getsockname(), "inherited": found and os.get_inheritable(found.fileno())}
except BedsitError as e:
    told = {"code": e.code, "why": e.message}
told["left"] = [word for word in os.environ if word.startswith("LISTEN_")]
told["open"] = [fd for fd in range(3, 20) if os.path.exists(f"/proc/self/fd/{fd}")]
print(json.dumps(told))
"""


def take(folder: Path, *kinds: str, count: str | None = None, names: str = "door", pid: str = "") -> dict[str, Any]:
    """What a program that wants the SEQPACKET listener "door" makes of descriptors of these *kinds*."""
    words = json.dumps([str(folder), kinds, str(len(kinds)) if count is None else count, names, pid])
    done = subprocess.run(
        [sys.executable, "-I", "-c", CHILD, words], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert told.pop("left") == []
    return told


def test_a_listener_is_taken_and_the_others_are_closed(tmp_path: Path) -> None:
    """By its name, wherever it stands; closed on exec."""
    found = take(tmp_path, "stream", "packet", names="other:door")
    assert found == {"at": "1.sock", "inherited": False, "open": [4]}


def test_what_was_passed_to_another_process_is_left_alone(tmp_path: Path) -> None:
    """A parent's variables: the descriptors are whatever they are here."""
    assert take(tmp_path, "packet", pid="1") == {"at": None, "inherited": None, "open": [3]}


def test_another_name_is_no_listener_of_ours(tmp_path: Path) -> None:
    """Then the program binds its own."""
    assert take(tmp_path, "packet", names="window") == {"at": None, "inherited": None, "open": []}


@pytest.mark.parametrize(
    ("kinds", "says"),
    [
        (["stream"], "SOCK_STREAM"),
        (["inet"], "AF_INET"),
        (["silent"], "does not listen"),
        (["file"], "non-socket"),
    ],
)
def test_what_is_no_such_listener_is_refused_and_closed(tmp_path: Path, kinds: list[str], says: str) -> None:
    """Another kind, another family, not listening, not even a socket."""
    told = take(tmp_path, *kinds)
    assert told["code"] == "config.invalid"
    assert says in told["why"]


@pytest.mark.parametrize(
    ("count", "names"),
    [("2", "door"), ("0", "door"), ("-1", "door"), ("one", "door"), ("", "door"), ("2", "door:door")],
)
def test_numbers_and_names_have_to_agree(tmp_path: Path, count: str, names: str) -> None:
    """Nobody guesses which descriptor is meant."""
    assert take(tmp_path, "packet", "packet", count=count, names=names)["code"] == "config.invalid"


def test_descriptors_that_are_not_there_are_refused(tmp_path: Path) -> None:
    """Counted and named, and yet closed."""
    assert take(tmp_path, count="1")["code"] == "config.invalid"


def test_nobody_listens_where_no_client_looks(tmp_path: Path) -> None:
    """A socket at another path is a mistake in a unit."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "here"))
        check_place(listener, tmp_path / "here")
        with pytest.raises(BedsitError, match=r"config\.invalid.*and not at .*/there"):
            check_place(listener, tmp_path / "there")


def test_who_waits_is_turned_away(tmp_path: Path) -> None:
    """All of them, and the listener goes on."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as one:
        listener.bind(str(tmp_path / "here"))
        listener.listen()
        one.connect(str(tmp_path / "here"))
        turn_away(listener)
        assert one.recv(1) == b""
        with socket.socket(socket.AF_UNIX) as another:
            another.connect(str(tmp_path / "here"))
    turn_away(listener)  # closed: there is nobody
