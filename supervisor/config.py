"""The daemon's configuration: TOML, parsed once, strictly; an unknown key is an error that names the nearest known one.

Order, later wins: defaults below, the main file, ``<file>.d/*.toml`` in lexical order, command-line options.
Sizes are bytes, as a number or as text with a unit (``"2GiB"``); durations are seconds.
"""

import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, get_origin, get_type_hints

import msgspec

from bedsit.ipc.errors import error
from bedsit.ipc.snapshot import ServiceClass
from bedsit.ipc.spelling import nearest
from bedsit.supervisor.admission import Burst, Concurrency, QueueBytes, QueueLength, Rate, Sessions, Weight
from bedsit.supervisor.devices.cores import find_usable
from bedsit.supervisor.devices.partitions.declared import read_partitions
from bedsit.supervisor.devices.shared import check_shared
from bedsit.supervisor.policy import Deaths, FewestSlots, Idle, MostSlots, Period, Restart, Restarts, Run

DEFAULT_PATH: Final = Path("/etc/bedsit/bedsit.toml")
_UNITS: Final[Mapping[str, int]] = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_SIZE: Final = re.compile(r"^(\d+)\s*([A-Za-z]*)$")
_MAX_FACTOR: Final = 16
_MAX_DOZE_S: Final = 30 * 86_400.0
_MAX_PARALLEL: Final = 1024
_MAX_SPIN_US: Final = 1000
# The longest socket below the run folder is "slots/s12345678/router.sock"; sun_path holds 107 bytes and a NUL.
_MAX_RUN_DIR: Final = 107 - len("/slots/s12345678/router.sock")


class TenantDefaults(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a tenant gets when its creator does not say.

    There is none of *min_share*: guaranteed by default, the whole box would be given away after a few tenants.
    """

    memory_bytes: int = 2 << 30
    cpus: float = 1.0
    pids: int = 256
    arena_bytes: int = 1 << 30
    queue_max: QueueLength = 1024
    queue_bytes_max: QueueBytes = 16 << 20
    max_inflight: int = 8
    sessions_max: Sessions = 64
    weight: Weight = 100
    service_class: ServiceClass = "interactive"
    #: Requests a second, 0 for no limit, and how many may come at once above that.
    rate_per_s: Rate = 0.0
    burst: Burst = 1
    #: Requests that its workers have at once; 0 for no limit.
    concurrency_max: Concurrency = 0
    #: After which deaths a slot is replaced, and after how many within how long it is given up; 0 for never.
    restart: Restart = "permanent"
    restarts_max: Restarts = 0
    restart_period_s: Period = 600.0
    #: Deaths in a row after which the model version that was running is taken out of use; 0 for never.
    quarantine_after: Deaths = 3
    #: Slots that it has at least and at most; without any it gets one with the first request.
    min_slots: FewestSlots = 1
    max_slots: MostSlots = 1
    #: It has no more than min_slots after having been idle for so long; 0 for never.
    idle_s: Idle = 0.0
    #: A call that runs for longer ends its slot; 0 for no limit.
    run_max_s: Run = 300.0


class DeviceSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the box's devices are given out."""

    #: Full devices first, or the emptiest first.
    order: Literal["pack", "spread"] = "pack"
    #: How many times over the memory of a time-sliced GPU may be promised.
    memory_factor: float = 1.0
    #: How many times over the time of a shared device may be promised to tenants of each class.
    share_factors: dict[ServiceClass, float] = msgspec.field(
        default_factory=lambda: {"realtime": 1.0, "interactive": 2.0, "batch": 4.0}
    )
    #: On a device that tenants take turns on, a batch that can yield does so after this time, while others wait.
    turn_ms: float = 10.0
    #: A batch that has kept such a device for longer costs its tenant the slot.
    hard_ms: float = 500.0
    #: Blank slots kept ready for each device that somebody sits on, besides the pool. On a GPU each holds a context,
    #: some 530 MiB of its memory, for nobody yet.
    warm: int = 0
    #: After so long without a request a model leaves a GPU that tenants take turns on, and comes back with the next;
    #: those of tenants that are realtime when their slot becomes theirs stay. 0 for never.
    doze_s: float = 60.0
    #: Cores that tenants take turns on, by the name of the device that they are: ``turns = "2-3"``.
    shared_cores: dict[str, str] = {}
    #: What GPUs with MIG are cut into, by UUID, the beginning of it, or index: ``GPU-8f3a = ["3g.71gb@4", "1g.18gb"]``.
    partitions: dict[str, list[str]] = {}
    #: Whether the daemon makes what is missing of that where nothing has to be destroyed for it, as after a reboot.
    create_missing: bool = True


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Every setting of the daemon."""

    run_dir: str = "/run/bedsit"
    state_dir: str = "/var/lib/bedsit"
    #: Members of this group may use the admin socket; empty: root only.
    admin_group: str = ""
    #: The user of the router. The default falls back to a reserved uid where no such user exists.
    router_user: str = ""
    #: Slots take two uids each from [uid_base, uid_base + uid_count).
    uid_base: int = 1_900_000_000
    uid_count: int = 4096
    #: Blank slots kept ready.
    pool_size: int = 2
    #: Slots of all kinds.
    max_slots: int = 256
    #: A zygote that forked this many slots is replaced by the next one, whose slots have other addresses.
    zygote_forks_max: int = 1000
    #: A model must be loaded within this time.
    load_timeout_s: float = 120.0
    #: Batches of all tenants that run at once; 0 for no such gate.
    parallel: int = 0
    #: How long the router spins before it sleeps: a processor for fewer microseconds of latency.
    router_spin_us: int = 0
    #: A replaced slot may finish its requests within this time.
    drain_timeout_s: float = 60.0
    #: A slot that has served for less is not taken from its tenant for being idle: whoever just came back stays.
    residence_s: float = 10.0
    #: Writable file systems of a slot; their pages count against the tenant's memory.
    tmp_bytes: int = 64 << 20
    bundle_bytes: int = 2 << 30
    #: What a slot's output may take on disk (two files).
    log_bytes: int = 8 << 20
    #: Largest artifact accepted.
    artifact_bytes: int = 64 << 30
    #: With less memory than this free on the box idle tenants have to go, and no slot is made but those promised
    #: (min_slots); 0: 5 % of it.
    memory_reserve_bytes: int = 0
    #: Rows kept of ``bedsit events``.
    events_kept: int = 10_000
    log_level: str = "info"
    tenant: TenantDefaults = TenantDefaults()
    devices: DeviceSettings = DeviceSettings()

    @property
    def run(self) -> Path:
        """The run folder."""
        return Path(self.run_dir)

    @property
    def state(self) -> Path:
        """The state folder."""
        return Path(self.state_dir)


def load_config(path: Path | None, overrides: Mapping[str, str | None]) -> Config:
    """Read *path* (None: the default path, which may be absent) and its drop-ins; None overrides nothing.

    Raises ``config.invalid`` naming file, key and nearest key.
    """
    merged: dict[str, Any] = {}
    main = path or DEFAULT_PATH
    if path is not None and not path.exists():
        raise error("config.invalid", f"{path}: no such file", "give the path of an existing file to --config")
    drop_ins = main.with_name(main.name + ".d")
    for file in [main, *sorted(drop_ins.glob("*.toml"))]:
        if file.exists():
            _merge(merged, _read(file))
    merged.update({key: value for key, value in overrides.items() if value is not None})
    try:
        config = msgspec.convert(merged, Config)
    except msgspec.ValidationError as e:
        raise error("config.invalid", f"{main}: {e}") from None
    _check(config)
    return config


def parse_size(text: str) -> int:
    """``"64MiB"`` as bytes. Raises ValueError."""
    found = _SIZE.match(text.strip())
    if found is None or found[2] not in _UNITS:
        known = ", ".join(unit for unit in _UNITS if unit)
        raise ValueError(f"{text!r} is no size; write a number with one of {known}")
    return int(found[1]) * _UNITS[found[2]]


def _merge(into: dict[str, Any], new: Mapping[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _read(file: Path) -> dict[str, Any]:
    try:
        raw = tomllib.loads(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise error("config.invalid", f"{file}: {e}") from None
    _read_keys(file, "", raw, Config)
    return raw


def _read_keys(file: Path, prefix: str, table: dict[str, Any], shape: type[msgspec.Struct]) -> None:
    """Check names here, where file and nearest name are known; turn sizes into bytes. Types are msgspec's work."""
    hints = get_type_hints(shape)
    for key, value in table.items():
        if key not in shape.__struct_fields__:
            raise error(
                "config.invalid", f"{file}: unknown key {prefix + key!r}", nearest(key, shape.__struct_fields__)
            )
        if isinstance(value, dict) and get_origin(hints[key]) is None and issubclass(hints[key], msgspec.Struct):
            _read_keys(file, f"{prefix}{key}.", value, hints[key])
        elif isinstance(value, str) and "bytes" in key.split("_"):
            try:
                table[key] = parse_size(value)
            except ValueError as e:
                raise error("config.invalid", f"{file}: {prefix + key}: {e}") from None


def _check(config: Config) -> None:
    def require(key: str, what: str, *, ok: bool) -> None:
        if not ok:
            raise error("config.invalid", f"{key} {what}")

    for key in ("run_dir", "state_dir"):
        require(key, "must be an absolute path", ok=Path(getattr(config, key)).is_absolute())
    short = len(config.run_dir.encode()) <= _MAX_RUN_DIR
    require("run_dir", f"must have at most {_MAX_RUN_DIR} bytes, because socket paths are limited", ok=short)
    require("run_dir", "must not be the state folder", ok=config.run_dir != config.state_dir)
    require("uid_base", "must be at least 65536, above every ordinary user", ok=config.uid_base >= 1 << 16)
    require("uid_count", "must end below 2^31", ok=0 < config.uid_count <= (1 << 31) - 1 - config.uid_base)
    require("max_slots", "needs two uids a slot", ok=0 < 2 * config.max_slots <= config.uid_count)
    require("pool_size", "must be below max_slots", ok=0 <= config.pool_size < config.max_slots)
    # Each generation begins with the blank slots that it replaces: otherwise it would be the last one's turn at once.
    require("zygote_forks_max", "must be above pool_size", ok=config.zygote_forks_max > config.pool_size)
    for key in (
        "load_timeout_s",
        "drain_timeout_s",
        "residence_s",
        "tmp_bytes",
        "bundle_bytes",
        "log_bytes",
        "artifact_bytes",
    ):
        require(key, "must be above 0", ok=getattr(config, key) > 0)
    require("memory_reserve_bytes", "must not be below 0", ok=config.memory_reserve_bytes >= 0)
    # What the router is told of a tenant has its range in its type.
    for key in ("memory_bytes", "cpus", "pids", "arena_bytes", "max_inflight"):
        require(f"tenant.{key}", "must be above 0", ok=getattr(config.tenant, key) > 0)
    fewest, most = config.tenant.min_slots, config.tenant.max_slots
    require("tenant.min_slots", "must not be above tenant.max_slots", ok=fewest <= most)
    devices = config.devices
    for key in ("turn_ms", "hard_ms"):
        require(f"devices.{key}", "must be above 0 and finite", ok=0 < getattr(devices, key) < math.inf)
    require("devices.hard_ms", "must not be below devices.turn_ms", ok=devices.hard_ms >= devices.turn_ms)
    factors = devices.share_factors.values()
    require("devices.share_factors", "must be from 1 to 16", ok=all(1 <= factor <= _MAX_FACTOR for factor in factors))
    require("devices.memory_factor", "must be from 1 to 16", ok=1 <= devices.memory_factor <= _MAX_FACTOR)
    require("devices.warm", "must be below max_slots", ok=0 <= devices.warm < config.max_slots)
    require(
        "devices.doze_s", "must be 0, or 1 s to 30 days", ok=devices.doze_s == 0 or 1 <= devices.doze_s <= _MAX_DOZE_S
    )
    if devices.warm:  # how many devices are sat on nobody knows yet
        ok = config.zygote_forks_max > config.max_slots
        require("zygote_forks_max", "must be above max_slots where devices.warm is set", ok=ok)
    read_partitions(devices.partitions)
    try:
        check_shared(devices.shared_cores, find_usable())
    except ValueError as e:
        raise error("config.invalid", f"devices.shared_cores: {e}") from None
    require("parallel", "must be 0 to 1024", ok=0 <= config.parallel <= _MAX_PARALLEL)
    require("router_spin_us", "must be 0 to 1000", ok=0 <= config.router_spin_us <= _MAX_SPIN_US)
    levels = ("debug", "info", "warning", "error")
    require("log_level", f"must be one of {', '.join(levels)}", ok=config.log_level in levels)
