"""The forms of the label maps of a bulk run."""

import pytest

from dcp_clip.bulk.label_form import check_label_form


def test_a_vocabulary_that_is_too_large_for_png_is_refused():
    check_label_form("png", 65_536)
    check_label_form("rle", 65_537)
    with pytest.raises(ValueError, match="at most 65536 .* has 65537: use --labels rle"):
        check_label_form("png", 65_537)
