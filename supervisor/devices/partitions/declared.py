"""``[devices.partitions]`` as it was written: which GPU, and what it is to be cut into. Pure.

    "GPU-8f3a" = ["3g.71gb@4", "1g.18gb", "1g.18gb"]

A key is a GPU's UUID, enough of its beginning, or its index. A value is a list of profiles, each with the memory slice
that it begins at where that matters. What can be judged without a driver is judged here, the rest in `plan.py`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from bedsit.ipc.errors import error
from bedsit.supervisor.devices.model import Box, Gpu, Trouble

KEY: Final = "devices.partitions"
_GPU: Final = re.compile(r"[0-9]{1,2}|GPU-[0-9a-f-]{0,36}")
_PART: Final = re.compile(r"(?P<profile>[1-9]g\.[1-9][0-9]{0,3}gb([+-][a-z]{1,8}(\.all)?)?)(@(?P<start>[0-9]{1,2}))?")
#: No GPU has room for more.
_MOST_PARTS: Final = 8
_MOST_GPUS: Final = 64


@dataclass(frozen=True)
class Part:
    """One instance that is wanted, anywhere or from the memory slice *start* on."""

    profile: str
    start: int | None = None

    def __str__(self) -> str:
        return self.profile if self.start is None else f"{self.profile}@{self.start}"


@dataclass(frozen=True)
class Declaration:
    """What one *key* of the configuration says."""

    key: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Found:
    """A declaration and its GPU, or why there is none for it."""

    declaration: Declaration
    gpu: Gpu | None = None
    trouble: Trouble | None = None


def read_partitions(table: Mapping[str, Sequence[str]]) -> tuple[Declaration, ...]:
    """What the table declares. Raises ``config.invalid``, naming the key, what is wrong, and what would be right."""
    if len(table) > _MOST_GPUS:
        raise error("config.invalid", f"{KEY}: {len(table)} GPUs, at most {_MOST_GPUS}")
    return tuple(Declaration(key, _read_parts(key, parts)) for key, parts in table.items())


def find_gpus(declared: Iterable[Declaration], box: Box) -> Iterator[Found]:
    """The GPU of each declaration. None where no GPU has that name, several do, or another key names it, too."""
    found = [(each, [gpu for gpu in box.gpus if _is_named(gpu, each.key)]) for each in declared]
    for each, gpus in found:
        rivals = [other.key for other, theirs in found if other is not each and len(theirs) == 1 and theirs == gpus]
        if len(gpus) == 1 and not rivals:
            yield Found(each, gpus[0])
        else:
            yield Found(each, trouble=_explain(each.key, gpus, rivals, box))


def pick(founds: Sequence[Found], name: str) -> tuple[Found, ...]:
    """The one that is called so: by the key that it was declared with, or by its UUID or the beginning of it.

    Raises ``device.not_found``, ``request.invalid``.
    """
    named = [each for each in founds if name == each.declaration.key]
    named = named or [each for each in founds if each.gpu is not None and each.gpu.uuid.startswith(name)]
    if len(named) > 1:
        names = ", ".join(each.gpu.uuid for each in named[:4] if each.gpu is not None)
        raise error("request.invalid", f"{name!r} may be {names}", "write more of it")
    if not named:
        keys = ", ".join(each.declaration.key for each in founds)
        hint = f"declared are: {keys}" if keys else "declare them in [devices.partitions] of the configuration"
        raise error("device.not_found", f"no GPU {name!r} with declared partitions", hint)
    return (named[0],)


def _read_parts(key: str, texts: Sequence[str]) -> tuple[Part, ...]:
    if not _GPU.fullmatch(key):
        hint = "write a GPU's UUID, the beginning of it, or its index: bedsit device list"
        raise error("config.invalid", f"{KEY}: {key!r} is no GPU", hint)
    if len(texts) > _MOST_PARTS:
        raise error("config.invalid", f"{KEY}.{key}: {len(texts)} parts, and no GPU has room for over {_MOST_PARTS}")
    parts = tuple(_read_part(key, text) for text in texts)
    starts = [part.start for part in parts if part.start is not None]
    for start in starts:
        if starts.count(start) > 1:
            both = " and ".join(str(part) for part in parts if part.start == start)
            raise error(
                "config.invalid", f"{KEY}.{key}: {both} overlap", "leave the place of one out, or write another"
            )
    return parts


def _read_part(key: str, text: str) -> Part:
    found = _PART.fullmatch(text)
    if found is None:
        plain = re.search(r"[1-9]g\.[1-9][0-9]{0,3}gb(\+me)?", text.replace(" ", "").lower())
        hint = f"did you mean {plain[0]!r}?" if plain else "write PROFILE or PROFILE@SLICE, as '1g.18gb' or '3g.71gb@4'"
        raise error("config.invalid", f"{KEY}.{key}: {text[:64]!r} is no part of a GPU", hint)
    return Part(found["profile"], int(found["start"]) if found["start"] else None)


def _is_named(gpu: Gpu, key: str) -> bool:
    return gpu.index == int(key) if key.isdigit() else gpu.uuid.startswith(key)


def _explain(key: str, gpus: Sequence[Gpu], rivals: Sequence[str], box: Box) -> Trouble:
    if rivals and gpus:
        return Trouble(f"{KEY}: {key!r} and {rivals[0]!r} are the same GPU, {gpus[0].uuid}", "keep one of them")
    if gpus:
        names = ", ".join(gpu.uuid for gpu in gpus[:4])
        return Trouble(f"{KEY}: {key!r} may be {names}", "write more of its UUID")
    if box.trouble is not None:
        return Trouble(f"{KEY}: {key!r} was not found: {box.trouble.what}", box.trouble.mend)
    there = ", ".join(f"{gpu.index} is {gpu.uuid}" for gpu in box.gpus[:8])
    return Trouble(f"{KEY}: there is no GPU {key!r}", f"there is: {there}" if there else "this box has no GPU")
