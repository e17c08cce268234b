"""The measurements and reports of tools/benchmark.py and tools/dry_run.py."""
