"""What this box has for each wall, and what is open without it. Changes nothing; most of it needs no root.

Run as ``python -I -m bedsit.sandbox.probe [--json]``.
"""
