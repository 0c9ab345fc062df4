"""What compute is handed out in: GPUs, parts of them, and cores."""
