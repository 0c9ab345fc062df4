"""What the fuzzers have found once: every file of the corpus through its target, and a little live abuse.

Here nothing is searched for, so atheris is not needed; ``make fuzz`` searches.
"""

import gc
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import structlog
import zmq

from bedsit.ipc.zmqlane import ZmqPort
from tests.fuzz.corpus import KEPT, KEPT_BYTES, folder_of, list_targets, load_target
from tests.fuzz.live import Abuse
from tests.supervisor.router.conftest import wait_until

_SEQUENCES = 10


@pytest.fixture(scope="module", autouse=True)
def silence() -> Iterator[None]:
    """Nobody reads the log of a router in this process: it would be most of the time."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize("name", list_targets())
def test_every_file_of_the_corpus_is_dealt_with(name: str) -> None:
    """What once took a path of its own, or broke something, is a value or a refusal."""
    target = load_target(name)
    gc.collect()  # some inputs count descriptors: none must be garbage of the target before
    files = sorted(folder_of(name).iterdir())
    for data in (*target.seeds(), *(path.read_bytes() for path in files)):
        try:
            target.TestOneInput(data)
        except BaseException as e:
            e.add_note(f"{name}: {data!r}")
            raise
    getattr(target, "close", lambda: None)()


@pytest.mark.parametrize("name", list_targets())
def test_the_corpus_is_small(name: str) -> None:
    """Few files, each of a few KiB: a corpus is for coverage, not for keeping what was tried."""
    sizes = [path.stat().st_size for path in folder_of(name).iterdir()]
    assert 0 < len(sizes) <= KEPT + 10  # beside what was mended
    assert max(sizes) <= KEPT_BYTES


def test_surplus_parts_are_read_one_at_a_time(tmp_path: Path) -> None:
    """A message of a thousand parts is a thousand steps, each of them nobody's, and the next packet is whole."""
    path = str(tmp_path / "lane.sock")
    with zmq.Context() as context, context.socket(zmq.DEALER) as client, closing(ZmqPort(context, path)) as port:
        client.setsockopt(zmq.IDENTITY, b"token")
        client.setsockopt(zmq.LINGER, 0)
        client.connect(f"ipc://{path}")
        client.send_multipart([b"x"] * 1000)
        client.send(b"packet")
        steps = [wait_until(port.receive)]
        while steps[-1][0] != b"token":
            steps.append(wait_until(port.receive))
    assert steps[-1] == (b"token", b"packet")
    assert set(steps[:-1]) == {(b"", b"")}
    assert len(steps) == 1001


@pytest.mark.slow
@pytest.mark.root
def test_clients_and_workers_without_manners_harm_nobody_else(plane: Any) -> None:
    """After each sequence of abuse an innocent tenant is answered right, and the router has given everything back."""
    plane.add_tenant("liar")
    with Abuse(plane) as abuse:
        for seed in range(_SEQUENCES):
            abuse.play("clients", seed)
            abuse.play("workers", seed)
