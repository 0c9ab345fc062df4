"""Writes minus its input: reads every byte, and writes as many."""
