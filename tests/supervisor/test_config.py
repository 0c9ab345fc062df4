"""Configuration: strict, layered, with errors that name file and key."""

import os
from pathlib import Path

import pytest

from bedsit.ipc.errors import BedsitError
from bedsit.supervisor.config import Config, load_config, parse_size

CORE = min(os.sched_getaffinity(0))
CORES = ",".join(map(str, sorted(os.sched_getaffinity(0))))


def write(tmp_path: Path, text: str, name: str = "bedsit.toml") -> Path:
    """A configuration file."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_defaults_are_valid() -> None:
    """No file is a configuration too."""
    assert load_config(None, {}) == Config()


def test_later_layers_win(tmp_path: Path) -> None:
    """Main file, then drop-ins in lexical order, then the command line; tables merge."""
    path = write(tmp_path, 'pool_size = 1\nlog_level = "debug"\n[tenant]\npids = 10\ncpus = 2.0\n')
    write(tmp_path, "pool_size = 3\n[tenant]\npids = 30\n", "bedsit.toml.d/20.toml")
    write(tmp_path, "pool_size = 2\n", "bedsit.toml.d/10.toml")
    config = load_config(path, {"run_dir": "/run/other", "state_dir": None})

    assert (config.pool_size, config.tenant.pids, config.tenant.cpus) == (3, 30, 2.0)
    assert (config.run_dir, config.state_dir, config.log_level) == ("/run/other", "/var/lib/bedsit", "debug")


def test_sizes_take_units(tmp_path: Path) -> None:
    """Bytes are a number or text with a unit."""
    config = load_config(write(tmp_path, 'tmp_bytes = "64MiB"\n[tenant]\nmemory_bytes = "2 GiB"\n'), {})

    assert (config.tmp_bytes, config.tenant.memory_bytes) == (64 << 20, 2 << 30)
    assert parse_size("12") == 12


def test_what_the_router_holds_tenants_to_has_its_usual_values(tmp_path: Path) -> None:
    """For the box at the top, for tenants that say nothing in their table."""
    text = (
        'parallel = 4\nrouter_spin_us = 50\n[tenant]\nservice_class = "batch"\nrate_per_s = 5\nweight = 7\nburst = 3\n'
    )
    config = load_config(write(tmp_path, text + 'concurrency_max = 2\nqueue_bytes_max = "32MiB"\nqueue_max = 5\n'), {})
    tenant = config.tenant

    assert (config.parallel, config.router_spin_us) == (4, 50)
    assert (tenant.service_class, tenant.rate_per_s, tenant.weight, tenant.burst) == ("batch", 5.0, 7, 3)
    assert (tenant.concurrency_max, tenant.queue_bytes_max, tenant.queue_max) == (2, 32 << 20, 5)


def test_how_slots_come_and_go_has_its_usual_values(tmp_path: Path) -> None:
    """For tenants that say nothing; and how much memory is kept free for that."""
    text = 'memory_reserve_bytes = "1 GiB"\n[tenant]\nrestart = "transient"\nrestarts_max = 5\nrestart_period_s = 60\n'
    more = "quarantine_after = 0\nmin_slots = 0\nmax_slots = 4\nidle_s = 300\nrun_max_s = 2.5\n"
    config = load_config(write(tmp_path, text + more), {})
    tenant = config.tenant

    assert config.memory_reserve_bytes == 1 << 30
    assert (tenant.restart, tenant.restarts_max, tenant.restart_period_s) == ("transient", 5, 60.0)
    assert (tenant.quarantine_after, tenant.min_slots, tenant.max_slots) == (0, 0, 4)
    assert (tenant.idle_s, tenant.run_max_s) == (300.0, 2.5)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pool_sizes = 1", "did you mean 'pool_size'?"),
        ("[tenant]\nmemory = 1", "did you mean 'memory_bytes'?"),
        ("[tenants]\npids = 1", "did you mean 'tenant'?"),
        ('pool_size = "two"', "Expected `int`"),
        ('tmp_bytes = "64MB"', "is no size"),
        ("pool_size = ", "bedsit.toml"),
        ("uid_base = 1000", "uid_base must be at least 65536"),
        ("uid_base = 2147483000", "must end below"),
        ("max_slots = 9000", "needs two uids"),
        ("pool_size = 256", "below max_slots"),
        ("pool_size = 5\nzygote_forks_max = 5", "must be above pool_size"),
        ('run_dir = "run"', "absolute"),
        (f'run_dir = "/{"x" * 90}"', "socket paths are limited"),
        ('run_dir = "/var/lib/bedsit"', "must not be the state folder"),
        ("load_timeout_s = 0", "above 0"),
        ("[tenant]\npids = -1", "above 0"),
        ('log_level = "loud"', "must be one of"),
        ("[devices.share_factors]\nbatch = 0.5", "devices.share_factors must be from 1 to 16"),
        ("[devices.share_factors]\nbatch = nan", "devices.share_factors must be from 1 to 16"),
        ("[devices.share_factors]\nnightly = 2", "Invalid enum value 'nightly'"),
        ("[devices]\nturn_ms = 0", "devices.turn_ms must be above 0 and finite"),
        ("[devices]\nhard_ms = inf", "devices.hard_ms must be above 0 and finite"),
        ("[devices]\nhard_ms = 5", "devices.hard_ms must not be below devices.turn_ms"),
        ("[devices]\nmemory_factor = 0.5", "devices.memory_factor must be from 1 to 16"),
        ("[devices]\ndoze_s = -1", "devices.doze_s must be 0, or 1 s to 30 days"),
        ("[devices]\ndoze_s = 0.5", "devices.doze_s must be 0, or 1 s to 30 days"),
        ("[devices]\ndoze_s = inf", "devices.doze_s must be 0, or 1 s to 30 days"),
        ("[devices]\nwarm = -1", "devices.warm must be below max_slots"),
        ("[devices]\nwarm = 256", "devices.warm must be below max_slots"),
        ("zygote_forks_max = 256\n[devices]\nwarm = 1", "must be above max_slots where devices.warm is set"),
        ("parallel = -1", "parallel must be 0 to 1024"),
        ("parallel = 1025", "parallel must be 0 to 1024"),
        ("router_spin_us = 1001", "router_spin_us must be 0 to 1000"),
        ("[tenant]\nweight = 0", "`int` >= 1 - at `$.tenant.weight`"),
        ("[tenant]\nrate_per_s = nan", "`float` >= 0.0 - at `$.tenant.rate_per_s`"),
        ("[tenant]\nrate_per_s = inf", "`float` <= 1000000.0 - at `$.tenant.rate_per_s`"),
        ('[tenant]\nservice_class = "fast"', "'fast' - at `$.tenant.service_class`"),
        ('[tenant]\nqueue_bytes_max = "1KiB"', ">= 65536 - at `$.tenant.queue_bytes_max`"),
        ("[tenant]\nsessions_max = 0", ">= 1 - at `$.tenant.sessions_max`"),
        ('[tenant]\nrestart = "always"', "'always' - at `$.tenant.restart`"),
        ("[tenant]\nrestart_period_s = 0", ">= 1.0 - at `$.tenant.restart_period_s`"),
        ("[tenant]\nidle_s = nan", ">= 0.0 - at `$.tenant.idle_s`"),
        ("[tenant]\nmax_slots = 0", ">= 1 - at `$.tenant.max_slots`"),
        ("[tenant]\nmin_slots = 2", "tenant.min_slots must not be above tenant.max_slots"),
        ("[tenant]\nmin_slot = 2", "did you mean 'min_slots'?"),
        ("memory_reserve_bytes = -1", "memory_reserve_bytes must not be below 0"),
        ('memory_reserve_bytes = "1 GB"', "is no size"),
        ("[tenant]\nmin_share = 0.1", "unknown key 'tenant.min_share'"),
        ('[devices.shared_cores]\nTurns = "0"', "devices.shared_cores: 'Turns' is no name"),
        ('[devices.shared_cores]\ncpu0 = "0"', "devices.shared_cores: cpu0 is what other devices are called"),
        ('[devices.shared_cores]\ngpu-a = "0"', "devices.shared_cores: gpu-a is what other devices are called"),
        ('[devices.shared_cores]\nturns = "0-"', "devices.shared_cores: turns: '0-' is no list of cores"),
        ('[devices.shared_cores]\nturns = ""', "devices.shared_cores: turns: '' is no list of cores"),
        ('[devices.shared_cores]\nturns = "8000"', "devices.shared_cores: turns: core 8000 is not there"),
        (f'[devices.shared_cores]\na = "{CORE}"\nb = "{CORE}"', f"b: core {CORE} is shared as a already"),
        (f'[devices.shared_cores]\na = "{CORES}"', "devices.shared_cores: a leave no core to tenants"),
        ("[devices.shared_cores]\nturns = 2", "`str`, got `int`"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, says: str) -> None:
    """Every mistake is config.invalid, with enough to find it."""
    with pytest.raises(BedsitError) as refused:
        load_config(write(tmp_path, text), {})

    assert refused.value.code == "config.invalid"
    assert says in str(refused.value)


def test_a_file_that_is_named_must_exist(tmp_path: Path) -> None:
    """--config of a missing file is no reason to run on defaults."""
    with pytest.raises(BedsitError, match="no such file"):
        load_config(tmp_path / "none.toml", {})
