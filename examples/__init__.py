"""Models to serve, and a demonstration that serves them: ``make demo``."""
