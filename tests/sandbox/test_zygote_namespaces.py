"""A zygote in namespaces of its own, as systemd gives them to its unit: they are no slot's either."""

from pathlib import Path
from typing import Any

import pytest

import tests_support

pytestmark = pytest.mark.root

_PROGRAM = Path(tests_support.__file__).with_name("zygote_program.py")
#: Goes into a new network namespace, then becomes the zygote.
_INTO_ITS_OWN = """
import ctypes, os, sys
if ctypes.CDLL(None).unshare(0x40000000) == 0:
    os.execv(sys.executable, [sys.executable, "-I", *sys.argv[1:]])
"""


def start(box: Any, *options: str) -> Any:
    """A zygote that is not in the box's network namespace."""
    return box.start_zygote(*options, command=("-c", _INTO_ITS_OWN, str(_PROGRAM), "SOCKET"))


def test_a_slot_that_shares_its_zygotes_namespace_is_seen(box: Any) -> None:
    """It is not in the box's, so that one comparison is not enough: the zygote's is looked at too."""
    zygote = start(box, "--without", "network_namespace,landlock,seccomp")
    slot = box.spawn(zygote)

    assert slot.walls()["network_namespace"] == "on"
    assert slot.walls(zygote=zygote.process.pid)["network_namespace"] == "off: the worker is in the box's own"


def test_a_slot_with_all_its_walls_shares_nothing_with_it(box: Any) -> None:
    """The harmless twin: the same zygote with every step, and one that is dead meanwhile."""
    zygote = start(box)
    slot = box.spawn(zygote)
    slot.commit()

    assert set(slot.walls(zygote=zygote.process.pid).values()) == {"on"}
    zygote.process.kill()
    zygote.process.wait()
    assert set(slot.walls(zygote=zygote.process.pid).values()) == {"on"}
