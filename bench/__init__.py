"""Benchmarks: ``python -m bench.NAME --json FILE [--quick]`` from the repository root. They measure, nothing else."""
