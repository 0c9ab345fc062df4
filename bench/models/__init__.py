"""Bundles that benchmarks deploy, written with the same weights that their rivals get."""
