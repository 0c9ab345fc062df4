"""What using bedsit looks like: ``Client``, ``infer``, arrays. These programs visit the demonstration's box.

They hold a key and no rights: ``run_as`` makes them a process of an ordinary user.
"""

import json
import os
import pwd
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from bedsit.ipc.client import Client
from examples.minilm.text import Tokenizer


def ask_digits(client: Client, images: NDArray[np.float32], labels: NDArray[np.int64], calls: int) -> dict[str, Any]:
    """Accuracy over all images in one request, then the median time of *calls* requests of one image each."""
    logits = client.infer("digits", {"image": images})["logits"]
    one = images[:1]
    return {
        "accuracy": float((logits.argmax(1) == labels).mean()),
        "p50_ms": time_calls(lambda: client.infer("digits", {"image": one}), calls),
    }


def ask_search(
    client: Client, tokenizer: Tokenizer, corpus: Sequence[str], queries: Sequence[str], calls: int
) -> dict[str, Any]:
    """For each query its nearest sentence's place in *corpus*; the median time of *calls* requests of one query."""

    def embed(sentences: Sequence[str]) -> NDArray[np.float32]:
        embedding: NDArray[np.float32] = client.infer("minilm", tokenizer.encode(sentences))["embedding"]
        return embedding

    cosines = embed(queries) @ embed(corpus).T
    return {
        "nearest": cosines.argmax(1).tolist(),
        "cosines": cosines.max(1).tolist(),
        "p50_ms": time_calls(lambda: embed(queries[:1]), calls),
    }


def time_calls(call: Callable[[], object], calls: int) -> float:
    """The median time of a call in milliseconds."""
    took = []
    for _ in range(calls):
        began = time.perf_counter()
        call()
        took.append(time.perf_counter() - began)
    return float(np.median(took)) * 1e3


def run_as(user: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run *work* in a process of *user*, who has no other group and no way back; gives its answer.

    A fork and not a new interpreter: an ordinary user often cannot read the folder that this one was started from.
    Raises RuntimeError when the work fails; why is on stderr.
    """
    account = pwd.getpwnam(user)
    reader, writer = os.pipe()
    sys.stdout.flush()
    # SAFETY: the child calls nothing that another thread of this process could hold a lock of, and leaves by os._exit.
    pid = os.fork()
    if pid == 0:
        _become(account, work, writer)
    os.close(writer)
    with os.fdopen(reader) as file:
        answer = file.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code != 0:
        raise RuntimeError(f"the visitor failed with exit code {code}")
    result: dict[str, Any] = json.loads(answer)
    return result


def _become(account: pwd.struct_passwd, work: Callable[[], dict[str, Any]], writer: int) -> NoReturn:
    code = 1
    try:
        os.setgroups([])
        os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
        os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
        with os.fdopen(writer, "w") as file:
            json.dump(work(), file)
        code = 0
    except BaseException:  # noqa: BLE001 - the last line of a process
        traceback.print_exc()
    finally:
        os._exit(code)
