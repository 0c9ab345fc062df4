"""A program of its own: asks NVML through NVIDIA's binding, and tells the daemon.

Why a process: a call of NVML can hang in the driver for ever, and a library of a vendor's in the root daemon would be
one that we cannot take out again. The daemon kills this one instead, and starts another.

Assumes nothing of the daemon but its end of a socket. Guarantees: changes nothing of a card but what it is told to: MIG
instances (cutter.py) and limits of memory (limiter.py), and leaves none of them half; leaves with the daemon.
"""
