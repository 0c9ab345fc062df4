"""1024 -> 4096 -> 1024: large enough that rows are cheaper together."""
