"""Checkpoints: file format, safe reading and writing, and the output folder of a training."""
