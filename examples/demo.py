"""From nothing to two tenants that answer real requests, and back to nothing: ``make demo``.

Exit code 0 says that every step did what it should, that the digits are read right, and that nothing is left behind.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from bedsit import BedsitError, Client
from bedsit.ipc.admin import SOCKET_NAME, AdminClient
from examples.box import Box
from examples.digits.train import load_digits, train
from examples.minilm.make import find_model_folder
from examples.minilm.make import make as make_minilm
from examples.minilm.text import Tokenizer
from examples.tiny.make import make as make_tiny
from examples.visitor import ask_digits, ask_search, run_as

GOOD_ACCURACY: Final = 0.97
VISITOR: Final = "nobody"
CORPUS: Final = [
    "The cat sleeps on the warm windowsill.",
    "Shares fell sharply after the central bank raised interest rates.",
    "Knead the dough for ten minutes, then let it rise.",
    "The telescope found water vapour in the air of a distant planet.",
    "She scored twice in the last minutes of the final.",
    "Restart the router if the connection drops.",
    "The museum opens a new wing for medieval paintings.",
    "Children learn a second language more easily than adults.",
    "Heavy rain flooded the roads along the river.",
    "The violinist played without looking at the score.",
]
QUERIES: Final = ["How do I bake bread?", "bad weather and traffic", "astronomers discover something on an exoplanet"]
NEAREST: Final = [2, 8, 3]


def main() -> None:
    """Run the demonstration; exits 1 when anything is not as it should be."""
    if os.geteuid() != 0:
        sys.exit("make demo needs root: it makes cgroups, namespaces and users of their own for every tenant")
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.default_int_handler)
    try:
        show()
    except KeyboardInterrupt:
        sys.exit("interrupted; everything was taken down")
    except (RuntimeError, AssertionError, TimeoutError, OSError, BedsitError) as e:
        notes = "".join(f"\n{note}" for note in getattr(e, "__notes__", ()))
        sys.exit(f"demo failed: {type(e).__name__}: {e}{notes}")


def show() -> None:
    """Start a bedsit, let two tenants move in, ask them, look at the walls, take everything down."""
    box = Box({"pool_size": 1})
    try:
        with told("bedsit is up: warm zygote, one blank slot"):
            box.up()
        show_digits(box)
        show_search(box)
        show_starts(box)
        show_walls(box)
    finally:
        # A second Ctrl-C must not leave half a bedsit behind.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        with told("bedsit is down: no process, cgroup, mount or socket is left"):
            box.down()
        signal.signal(signal.SIGINT, before)


def show_digits(box: Box) -> None:
    """Tenant vision: a small convolutional net for handwritten digits."""
    with told("trained a small convolutional net on handwritten digits"):
        train(box.folder / "digits")
    key = move_in(box, "vision", "digits", box.folder / "digits")
    data = load_digits()
    images, labels = data.held_out_images, data.held_out_labels
    seen = visit(box, "vision", key, lambda client: ask_digits(client, images, labels, calls=500))
    say(f"vision/digits: {seen['accuracy']:.3f} right on {len(images)} held-out images, p50 {seen['p50_ms']:.2f} ms")
    assert seen["accuracy"] >= GOOD_ACCURACY, f"expected at least {GOOD_ACCURACY}"


def show_search(box: Box) -> None:
    """Tenant search: sentence embeddings from a transformer with published weights."""
    key = move_in(box, "search", "minilm", make_minilm(box.folder / "minilm"))
    tokenizer = Tokenizer(find_model_folder() / "tokenizer.json")
    seen = visit(box, "search", key, lambda client: ask_search(client, tokenizer, CORPUS, QUERIES, calls=50))
    say(f"search/minilm: nearest of {len(CORPUS)} sentences, p50 {seen['p50_ms']:.1f} ms for one embedding")
    for query, found, cosine in zip(QUERIES, seen["nearest"], seen["cosines"], strict=True):
        print(f"      {cosine:.2f}  {query} -> {CORPUS[found]}")
    assert seen["nearest"] == NEAREST, f"expected {NEAREST}"


def show_starts(box: Box) -> None:
    """Two stopped tenants start at once: one gets the blank slot of the pool, for the other one is forked."""
    make_tiny(box.folder / "tiny")
    names = ("early", "late")
    for name in names:
        box.read("tenant", "create", name, "--memory", "512MiB")
        box.read("model", "deploy", name, box.folder / "tiny")
        box.read("tenant", "stop", name)
    box.await_pool()

    def start(name: str) -> float:
        with AdminClient(box.run_dir / SOCKET_NAME) as admin:
            began = time.perf_counter()
            admin.call("tenant.start", name=name)
            return (time.perf_counter() - began) * 1e3

    with ThreadPoolExecutor(len(names)) as threads:
        pooled, forked = sorted(threads.map(start, names))
    say(f"start of a stopped tenant: {pooled:.0f} ms in a slot of the pool, {forked:.0f} ms in one forked on demand")


def show_walls(box: Box) -> None:
    """What stands around the tenants, as the daemon reads it from outside of the slots."""
    walls: dict[str, str] = box.json("status")["walls"]
    on = [layer.replace("_", " ") for layer, state in walls.items() if state == "on"]
    off = [
        f"{layer.replace('_', ' ')} ({state.removeprefix('off: ')})" for layer, state in walls.items() if state != "on"
    ]
    say(f"walls up, seen from outside: {', '.join(on)}")
    if off:
        say(f"walls down: {', '.join(off)}")


def move_in(box: Box, tenant: str, model: str, bundle: Path) -> str:
    """Create a tenant, deploy its model; gives the key."""
    with told(f"{tenant} moved in with {model}"):
        created = box.json("tenant", "create", tenant)
        box.read("model", "deploy", tenant, bundle)
    return str(created["key"]["secret"])


def visit(box: Box, tenant: str, key: str, ask: Callable[[Client], dict[str, Any]]) -> dict[str, Any]:
    """Let an ordinary user with the tenant's key ask; gives the answer."""

    def work() -> dict[str, Any]:
        with Client(tenant, key, run_dir=str(box.run_dir)) as client:
            return ask(client)

    return run_as(VISITOR, work)


@contextmanager
def told(what: str) -> Iterator[None]:
    """Do something and say how long it took."""
    began = time.perf_counter()
    yield
    say(f"{what}  ({time.perf_counter() - began:.1f} s)")


def say(line: str) -> None:
    """One finding."""
    print(f"  * {line}", flush=True)


if __name__ == "__main__":
    main()
