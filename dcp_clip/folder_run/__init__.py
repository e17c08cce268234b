"""Runs over a folder of images: planned, resumable, with results that survive an interruption."""
