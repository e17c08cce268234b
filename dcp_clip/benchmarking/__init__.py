"""What tools/benchmark.py and tools/dry_run.py measure, and how they report it."""
