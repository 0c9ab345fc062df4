"""The admin socket where systemd holds it: who asks waits for the next daemon."""

import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bedsit.ipc.admin import AdminClient
from tests_support.holder import Holder, listener_pid


def test_a_question_waits_for_the_next_daemon(box: Any) -> None:
    """Killed or told to leave: the socket stays, what is asked then is answered, and the kernel names who answers."""
    path = box.run / "admin.sock"
    box.stop_daemon()
    with Holder("admin", path, socket.SOCK_STREAM) as holder, ThreadPoolExecutor(1) as pool:
        box.starter, box.passed = holder.starter, holder.fds
        for end in (box.kill_daemon, box.stop_daemon):
            with AdminClient(path, timeout_s=60) as early:
                answer = pool.submit(early.call, "ping")
                box.start()
                assert answer.result()["version"]
            assert path.stat().st_mode & 0o777 == 0o660
            assert listener_pid(path, socket.SOCK_STREAM) == box.daemon.pid
            end()
        assert path.exists()
    box.starter, box.passed = [], []
    box.start()


def test_a_socket_at_another_place_is_a_mistake(box: Any) -> None:
    """Said by exit status 78, after which systemd does not try again; who waits is turned away."""
    with Holder("admin", box.root / "elsewhere", socket.SOCK_STREAM) as holder:
        box.starter, box.passed = holder.starter, holder.fds
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(holder.path))
            assert box.launch().wait(60) == 78
            assert client.recv(1) == b""
    box.starter, box.passed = [], []
    assert "and not at" in box.log()
