"""Image files: which files are images, how each mode is read, and how files are written."""
