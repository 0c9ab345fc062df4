"""Cgroups: a slot's limits, its counters, and its end. `detect` says which versions of them this box has."""

from bedsit.sandbox.cgroup.backend import CgroupBackend, Limits, Stats
from bedsit.sandbox.cgroup.detect import detect

__all__ = ["CgroupBackend", "Limits", "Stats", "detect"]
