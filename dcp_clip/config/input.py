"""Check the keys of the training images, which Detectron2 checks by assertions or not at all."""

from __future__ import annotations

from detectron2.config import CfgNode

__all__ = ["check_input"]

_CHOICES = {
    "MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "RANDOM_FLIP": ("horizontal", "vertical", "none"),
}
# The values of INPUT.CROP.TYPE, and what INPUT.CROP.SIZE is then.
_CROPS = {
    "absolute": "the height and the width in pixels",
    "absolute_range": "the shortest and the longest side in pixels",
    "relative": "fractions of the height and the width, above 0 and at most 1",
    "relative_range": "the smallest fractions of the height and the width, above 0 and at most 1",
}


def check_input(node: CfgNode) -> None:
    """Check cfg.INPUT.

    Raises:
        ValueError: for an unknown value, or sizes that do not fit their kind.
    """
    for key, known in _CHOICES.items():
        _check_choice(f"INPUT.{key}", node[key], known)
    sizes, is_range = node.MIN_SIZE_TRAIN, node.MIN_SIZE_TRAIN_SAMPLING == "range"
    if not sizes or (is_range and (len(sizes) != 2 or sizes[0] > sizes[1])):
        what = "the smallest and the largest size" if is_range else "one or more sizes"
        raise ValueError(
            f"INPUT.MIN_SIZE_TRAIN is {sizes}, but must be {what} for "
            f"INPUT.MIN_SIZE_TRAIN_SAMPLING '{node.MIN_SIZE_TRAIN_SAMPLING}'."
        )
    if node.CROP.ENABLED:
        _check_choice("INPUT.CROP.TYPE", node.CROP.TYPE, _CROPS)
        if not _is_size(node.CROP.TYPE, node.CROP.SIZE):
            raise ValueError(
                f"INPUT.CROP.SIZE is {node.CROP.SIZE}, but for INPUT.CROP.TYPE '{node.CROP.TYPE}' "
                f"it must be two numbers, {_CROPS[node.CROP.TYPE]}."
            )


def _check_choice(key: str, value: str, known: dict | tuple) -> None:
    if value not in known:
        raise ValueError(f"{key} is '{value}'; known are {', '.join(known)}.")


def _is_size(kind: str, size: list | tuple) -> bool:
    if kind.startswith("relative"):
        return len(size) == 2 and all(0 < x <= 1 for x in size)
    if len(size) != 2 or not all(isinstance(x, int) and x > 0 for x in size):
        return False
    return kind == "absolute" or size[0] <= size[1]
