"""The questions there are, and how a call that NVML refuses becomes an answer."""

from collections.abc import Callable
from typing import Any

import pynvml

from bedsit.supervisor.devices.model import Placement
from bedsit.supervisor.devices.nvml.calls import Calls
from bedsit.supervisor.devices.nvml.cutter import Cutter
from bedsit.supervisor.devices.nvml.halfdone import HalfDone
from bedsit.supervisor.devices.nvml.limiter import Limiter, NotHeld
from bedsit.supervisor.devices.nvml.listener import Listener
from bedsit.supervisor.devices.nvml.reader import Reader
from bedsit.supervisor.devices.reports import NOT_HELD, Refusal, to_wire


class Answers:
    """One conversation. *send* sends a packet and waits for room; *offer* does not wait, and is asked by a thread."""

    def __init__(self, send: Callable[[dict[str, Any]], None], offer: Callable[[dict[str, Any]], bool]) -> None:
        self._offer = offer
        self._calls = Calls(lambda name: send({"calling": name}))
        self._reader = Reader(self._calls)
        self._cutter = Cutter(self._calls)
        self._limiter = Limiter(self._calls)
        self._listener: Listener | None = None

    def give(self, question: dict[str, Any]) -> dict[str, Any]:
        """The answer to one question; also to one that is none."""
        try:
            return {"answer": to_wire(self._ask(question))}
        except HalfDone as e:
            return {"refused": to_wire(Refusal(_code_of(e.cause), e.call, str(e.cause), str(e)))}
        except NotHeld as e:
            return {"refused": to_wire(Refusal(NOT_HELD, self._calls.last, str(e)))}
        except pynvml.NVMLError as e:
            return {"refused": to_wire(Refusal(e.value, self._calls.last, str(e)))}

    def _ask(self, question: dict[str, Any]) -> object:
        match question:
            case {"ask": "driver"}:
                return self._reader.read_driver()
            case {"ask": "gpu", "index": int(index)}:
                return self._reader.read_gpu(index)
            case {"ask": "listen"}:
                return self._listen()
            case {"ask": "create", "uuid": str(uuid), "profile": int(profile), "start": int(start), "size": int(size)}:
                return self._cutter.create(uuid, profile, Placement(start, size))
            case {"ask": "finish", "uuid": str(uuid), "gpu_instance": int(number), "profile": int(profile)}:
                return self._cutter.finish(uuid, number, profile)
            case {"ask": "destroy", "uuid": str(uuid), "gpu_instance": int(number), "profile": int(profile)}:
                return self._cutter.destroy(uuid, number, profile)
            case {"ask": "processes", "uuid": str(uuid)}:
                return self._reader.read_processes(uuid)
            case {"ask": "limit", "uuid": str(uuid), "group": str(group), "limit_bytes": int(limit_bytes)}:
                return self._limiter.limit(uuid, group, limit_bytes)
            case {"ask": "lift", "uuid": str(uuid), "group": str(group)}:
                return self._limiter.lift(uuid, group)
        return None

    def _listen(self) -> list[str]:
        """To all GPUs that were read. Two sets at once tell some things twice; none in between would miss some."""
        former, self._listener = self._listener, Listener(self._calls, self._offer)
        try:
            return self._listener.listen(self._reader.handles)
        finally:
            if former is not None:
                former.end()


def _code_of(cause: Exception) -> int:
    return int(cause.value) if isinstance(cause, pynvml.NVMLError) else NOT_HELD
