"""The admin client against a real server: answers, errors, uploads, and a daemon that comes and goes."""

import io
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bedsit.ipc.admin import AdminClient, Body, Phase
from bedsit.ipc.errors import BedsitError, NotFound, error


@pytest.fixture
def client(run_dir: Path, daemon: Any) -> Iterator[AdminClient]:
    """A client of the scripted daemon, with a deadline so that no test hangs."""
    with AdminClient(run_dir / "admin.sock", timeout_s=20) as admin:
        yield admin


def test_call_returns_the_result_and_leaves_out_arguments_that_are_none(client: AdminClient, daemon: Any) -> None:
    """What the operator did not say is not sent: the daemon's default holds."""
    daemon.script["tenant.create"] = {"name": "vision"}
    assert client.call("tenant.create", name="vision", cpus=None) == {"name": "vision"}
    assert daemon.heard == [("tenant.create", {"name": "vision"})]


def test_error_comes_back_in_its_class_with_hint(client: AdminClient, daemon: Any) -> None:
    """Code, message and hint survive the wire, and the connection is good for the next call."""
    daemon.script["tenant.show"] = error("tenant.not_found", "no tenant 'x'", "bedsit tenant list")
    with pytest.raises(NotFound) as caught:
        client.call("tenant.show", name="x")
    assert (caught.value.code, caught.value.hint) == ("tenant.not_found", "bedsit tenant list")
    assert client.call("ping")["version"]


def test_phases_are_heard_in_order(client: AdminClient, daemon: Any) -> None:
    """Progress frames reach the callback before the result is returned."""
    daemon.script["down"] = [
        {"progress": {"phase": "slots", "ms": None}},
        {"progress": {"phase": "slots", "ms": 2.5}},
        {"ok": True, "result": {}},
    ]
    heard: list[Phase] = []
    assert client.call("down", progress=heard.append) == {}
    assert heard == [Phase("slots", None), Phase("slots", 2.5)]


def test_stream_gives_items_until_the_end(client: AdminClient, daemon: Any) -> None:
    """Items come one by one; the connection serves the next call."""
    daemon.script["events"] = [{"item": {"id": 1}}, {"item": {"id": 2}}, {"ok": True, "result": None}]
    assert [row["id"] for row in client.stream("events", limit=2)] == [1, 2]
    assert client.call("ping")["version"]


def test_stream_that_is_left_early_hangs_up(client: AdminClient, daemon: Any) -> None:
    """A follower that stops following does not leave the daemon sending into an abandoned connection."""

    def follow(_args: Any, connection: socket.socket) -> Iterator[dict[str, Any]]:
        yield {"item": {"id": 1}}
        assert connection.recv(1) == b""
        yield {"ok": True}

    daemon.script["events"] = follow
    stream = client.stream("events", follow=True)
    assert next(stream)["id"] == 1
    stream.close()
    assert daemon.went_away.wait(20)
    assert client.call("ping")["version"]


def test_upload_arrives_whole_in_small_frames(client: AdminClient, daemon: Any) -> None:
    """Three and a half chunks arrive as sent, with progress meanwhile."""
    data = bytes(range(256)) * (14 << 10)

    def deploy(args: dict[str, Any], connection: socket.socket) -> Iterator[dict[str, Any]]:
        yield {"continue": True}
        daemon.take_body(args["size"], connection)
        yield {"progress": {"phase": "load", "ms": 1.0}}
        yield {"ok": True, "result": {"name": "digits"}}

    daemon.script["model.deploy"] = deploy
    body = Body(io.BytesIO(data), len(data))
    assert client.call("model.deploy", body=body, size=len(data)) == {"name": "digits"}
    assert daemon.bodies == [data]


def test_upload_that_is_refused_half_way_ends_in_the_refusal(client: AdminClient, daemon: Any) -> None:
    """A daemon whose disk is full answers and reads no further: the client stops sending and says why."""

    def deploy(_args: Any, connection: socket.socket) -> Iterator[dict[str, Any]]:
        yield {"continue": True}
        assert connection.recv(1000)
        yield {"ok": False, "error": error("disk.full", "no room").to_wire()}
        # Reads nothing more, but stays: only the client's hanging up ends this.
        poller = select.poll()
        poller.register(connection, select.POLLRDHUP)
        assert poller.poll(20_000)

    daemon.script["model.deploy"] = deploy
    size = 64 << 20
    with pytest.raises(BedsitError) as caught:
        client.call("model.deploy", body=Body(io.BytesIO(bytes(size)), size), size=size)
    assert caught.value.code == "disk.full"
    assert client.call("ping")["version"]


def test_upload_of_a_file_that_shrank_is_an_error(client: AdminClient, daemon: Any) -> None:
    """Fewer bytes than announced end the call on this side; nothing half is left to be taken for whole."""

    def deploy(args: dict[str, Any], connection: socket.socket) -> Iterator[dict[str, Any]]:
        yield {"continue": True}
        daemon.take_body(args["size"], connection)
        yield {"ok": True, "result": {}}

    daemon.script["model.deploy"] = deploy
    with pytest.raises(BedsitError, match="ended 5 bytes early"):
        client.call("model.deploy", body=Body(io.BytesIO(b"12345"), 10), size=10)
    assert daemon.went_away.wait(20)
    assert daemon.bodies == []


def test_daemon_that_restarted_between_two_calls_is_found_again(run_dir: Path, daemon: Any) -> None:
    """An idle connection that the old daemon closed is opened anew, without an error."""
    with AdminClient(run_dir / "admin.sock", timeout_s=20) as client:
        client.call("ping")
        daemon.close()
        (run_dir / "admin.sock").unlink()
        second = type(daemon)(run_dir / "admin.sock")
        try:
            assert client.call("ping")["version"]
        finally:
            second.close()


def test_daemon_that_dies_during_a_call_is_unavailable(client: AdminClient, daemon: Any) -> None:
    """Whether the work was done is not known, so it is not repeated."""

    def die(_args: Any, connection: socket.socket) -> Iterator[dict[str, Any]]:
        connection.shutdown(socket.SHUT_RDWR)
        yield from ()

    daemon.script["tenant.stop"] = die
    with pytest.raises(BedsitError) as caught:
        client.call("tenant.stop", name="x")
    assert caught.value.code == "daemon.unavailable"
    assert [op for op, _ in daemon.heard] == ["tenant.stop"]


def test_no_daemon_is_unavailable_with_a_hint(run_dir: Path) -> None:
    """Nobody listens: exit code 69, and how to start it."""
    with pytest.raises(BedsitError) as caught:
        AdminClient(run_dir / "admin.sock").call("ping")
    assert (caught.value.code, caught.value.exit_code) == ("daemon.unavailable", 69)
    assert "bedsit up" in caught.value.hint


def test_refusal_without_reading_the_request_is_heard(run_dir: Path) -> None:
    """A daemon that does not like the caller answers and closes at once; the caller sees its answer, not a reset."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(run_dir / "admin.sock"))
        listener.listen(1)

        def refuse() -> None:
            from bedsit.ipc.frames import send_frame

            connection, _ = listener.accept()
            with connection:
                send_frame(connection, {"ok": False, "error": error("permission.denied", "not you").to_wire()})

        thread = threading.Thread(target=refuse)
        thread.start()
        with AdminClient(run_dir / "admin.sock", timeout_s=20) as client, pytest.raises(BedsitError) as caught:
            client.call("ping", padding="x" * (1 << 20))
        thread.join(20)
    assert caught.value.code == "permission.denied"


def test_deadline_bounds_a_silent_daemon(run_dir: Path) -> None:
    """A daemon that accepts and never answers costs the deadline and no more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(run_dir / "admin.sock"))
        listener.listen(1)
        with AdminClient(run_dir / "admin.sock", timeout_s=0.05) as client, pytest.raises(BedsitError) as caught:
            client.call("ping")
    assert caught.value.code == "deadline.exceeded"
