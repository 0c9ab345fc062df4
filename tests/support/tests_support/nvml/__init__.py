"""A stand-in for libnvidia-ml.so.1 under NVIDIA's own binding: the cards (real tables), the library, and its script."""
