"""What makes a copy of the zygote a process of its own: session, name, environment, random numbers."""

import io
import os
import random
import sys
from typing import Final

import setproctitle

from bedsit.sandbox.jail.context import Context

_ENVIRONMENT: Final = {"HOME": "/tmp", "USER": "worker", "PATH": "/usr/bin", "LANG": "C.UTF-8"}


def take_session(_: Context) -> None:
    """A session and process group of its own: what works on either (autogroup(7), setpriority(2)) stays in the slot."""
    os.setsid()


def take_name(context: Context) -> None:
    """What `ps` shows on the box."""
    setproctitle.setproctitle(f"bedsit: {context.role} {context.order.slot}")


def take_environment(context: Context) -> None:
    """The variables that a tenant's code sees: the same in every slot, but for what its device takes.

    CUDA reads its own when it starts, which is never before this.
    """
    os.environ.clear()
    os.environ.update(_ENVIRONMENT)
    if context.role == "worker":
        os.environ.update(context.order.env)
    os.umask(0o077)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)  # a worker that is killed has still said what it said


def reseed(_: Context) -> None:
    """Siblings are copies of one process: without this they would all draw the same random numbers.

    What asks the kernel each time, or notices another pid, needs nothing: secrets, uuid, tempfile, OpenSSL.
    """
    random.seed()
    if multiprocessing := sys.modules.get("multiprocessing.process"):  # torch imports it
        multiprocessing.current_process().authkey = os.urandom(32)
    if numpy_random := sys.modules.get("numpy.random"):
        numpy_random.seed()
    if torch := sys.modules.get("torch"):
        torch.default_generator.seed()  # not torch.seed: that one walks every back end and takes 70 ms the first time
