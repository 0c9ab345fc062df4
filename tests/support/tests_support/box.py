"""A real bedsit for tests: the one that the demonstration and the benchmarks use too."""

from examples.box import Box, wait_for_none, wait_until

__all__ = ["Box", "wait_for_none", "wait_until"]
