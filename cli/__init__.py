"""The command line: one file per noun, each a thin call to the admin API; ``render`` is the only file that prints.

Imports nothing of bedsit but ``bedsit.ipc``. Other parts (daemon, router, probe) are started as processes.
"""
