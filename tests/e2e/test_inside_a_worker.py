"""What a tenant's code finds from inside its slot, asked through real requests."""

import numpy as np
import pytest

from bedsit import BedsitError, Client
from tests_support.box import Box
from tests_support.bundles import HUNGRY, NOISY, NOSY, QUITTER, SPINNER, write_bundle


@pytest.fixture(scope="module")
def room(shared_box: Box, tmp_path_factory: pytest.TempPathFactory) -> Box:
    """Tenant ``guest``: 384 MiB, half a core, 48 processes and threads, and a model for each bad habit."""
    box = shared_box
    folder = tmp_path_factory.mktemp("habits")
    box.json("tenant", "create", "guest", "--memory", "384MiB", "--cpus", "0.5", "--pids", "48")
    habits = {
        "nosy": NOSY,
        "hungry": HUNGRY,
        "spinner": SPINNER,
        "quitter": QUITTER,
        "noisy": NOISY,
    }
    for name, code in habits.items():
        box.json("model", "deploy", "guest", str(write_bundle(folder, name, code, idempotent=False)))
    return box


def ask(box: Box, model: str, *values: float) -> list[float]:
    """One request of tenant ``guest``."""
    with Client("guest", run_dir=str(box.run_dir)) as client:
        return [float(v) for v in client.infer(model, {"x": np.array(values, np.float32)}, timeout_s=60)["y"]]


def test_nothing_of_the_box_is_in_reach(room: Box) -> None:
    """One process to see, no folder to write, no network, no capability, not root; its own scratch space works."""
    processes, writable, networks, capabilities, uid, scratch = ask(room, "nosy", 0, 1, 2, 3, 4, 5)

    assert (processes, writable, networks, capabilities) == (1, 0, 0, 0)
    assert uid == 1001
    assert scratch == 3


def test_walls_are_seen_from_outside(room: Box) -> None:
    """`bedsit tenant show` names every wall of the running worker as read from outside, and none is down."""
    assert ask(room, "quitter", 7) == [7]  # it may be coming back from another test
    walls = room.json("tenant", "show", "guest")["walls"]

    assert {layer: state for layer, state in walls.items() if state != "on"} == {}
    assert {"pid_namespace", "network_namespace", "read_only_root", "no_capabilities", "no_new_privs"} <= walls.keys()
    assert {"landlock", "seccomp"} <= walls.keys()


def test_memory_beyond_the_limit_is_out_of_memory(room: Box) -> None:
    """The worker is killed, its caller gets worker.crashed, the event says out of memory, and it comes back."""
    with pytest.raises(BedsitError) as caught:
        ask(room, "hungry", 1)

    assert caught.value.code == "worker.crashed"
    died = [e for e in room.items("events", "--tenant", "guest") if e["kind"] == "slot.died"]
    assert died[-1]["cause"] == "oom"
    assert ask(room, "quitter", 7) == [7]


def test_spinning_costs_no_more_than_the_quota(room: Box) -> None:
    """Two seconds of busy waiting get half a core's time, not a core's."""
    cpu_s, wall_s = ask(room, "spinner", 2)

    assert cpu_s / wall_s < 0.5 * 1.2


def test_an_exit_is_told_from_a_crash(room: Box) -> None:
    """A model that calls os._exit(3) is reported as an exit with status 3."""
    with pytest.raises(BedsitError) as caught:
        ask(room, "quitter", -3)

    assert caught.value.code == "worker.crashed"
    died = [e for e in room.items("events", "--tenant", "guest") if e["kind"] == "slot.died"]
    assert died[-1]["cause"] == "exit"
    assert "3" in died[-1]["text"]


def test_output_of_the_model_is_in_its_log(room: Box) -> None:
    """What a model prints is in `bedsit logs` of its tenant, without control characters."""
    ask(room, "noisy", 1)

    lines = [row["text"] for row in room.items("logs", "guest")]
    assert any("hello from the model" in line for line in lines)
    assert not any("\x1b" in line for line in lines)
