"""Keys of the training images whose values cannot be used."""

import pytest

from dcp_clip.config import setup_cfg

SAMPLING, SIZES = "INPUT.MIN_SIZE_TRAIN_SAMPLING", "INPUT.MIN_SIZE_TRAIN"
CROP = ["INPUT.CROP.ENABLED", "True", "INPUT.CROP.TYPE"]
SIZE = "INPUT.CROP.SIZE"


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["INPUT.RANDOM_FLIP", "both"], "RANDOM_FLIP is 'both'; known are horizontal, vertical"),
        ([SAMPLING, "all"], "MIN_SIZE_TRAIN_SAMPLING is 'all'; known are choice, range"),
        ([SIZES, "()"], r"MIN_SIZE_TRAIN is \(\), but must be one or more sizes for"),
        ([SAMPLING, "range"], r"is \(800,\), but must be the smallest and the largest size for"),
        ([SAMPLING, "range", SIZES, "(9, 8)"], r"is \(9, 8\), but must be the smallest and the"),
        ([*CROP, "square"], "CROP.TYPE is 'square'; known are absolute, absolute_range, relative"),
        ([*CROP, "absolute"], r"SIZE is \[0.9, 0.9\], but .* two numbers, the height"),
        ([*CROP, "absolute", SIZE, "[64]"], r"CROP.SIZE is \[64\], but .* two numbers"),
        ([*CROP, "absolute_range", SIZE, "[9, 8]"], "the shortest and the longest side in pixels"),
        ([*CROP, "relative", SIZE, "[256, 320]"], "fractions of the height and the width, above 0"),
        ([*CROP, "relative_range", SIZE, "[0.0, 0.5]"], "the smallest fractions of the height"),
    ],
)
def test_wrong_values_are_one_sentence(opts, message):
    with pytest.raises(ValueError, match=message) as raised:
        setup_cfg(opts=opts)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "opts",
    [
        ["INPUT.CROP.TYPE", "unused"],  # without crops
        ["INPUT.RANDOM_FLIP", "none", SAMPLING, "range", SIZES, "(32, 64)"],
        [*CROP, "absolute", SIZE, "[64, 32]"],
        [*CROP, "absolute_range", SIZE, "[32, 64]"],
        [*CROP, "relative", SIZE, "[1, 0.5]"],
        [*CROP, "relative_range"],
    ],
)
def test_right_values(opts):
    setup_cfg(opts=opts)
