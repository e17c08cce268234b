"""Segment a folder of images. A run can be interrupted at any time and resumed."""
