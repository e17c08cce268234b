"""Checkpoint files: format, safe reading and writing, and the folder of a training."""
