"""Bundles that harm, for `bench.noisy`: nothing here is for use."""
