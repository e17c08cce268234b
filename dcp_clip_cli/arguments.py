"""Types of arguments that several commands have."""

__all__ = ["positive"]


def positive(text: str) -> int:
    """Parse a number above 0."""
    if int(text) < 1:
        raise ValueError(text)
    return int(text)
