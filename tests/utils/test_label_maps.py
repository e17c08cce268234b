"""Figures of label maps."""

import numpy as np

from dcp_clip.utils.label_maps import category_shares


def test_shares_exclude_unlabelled_pixels():
    shares = category_shares(np.array([[0, 0, 2, 255], [2, 2, 0, -1]], np.int16), 3)
    np.testing.assert_allclose(shares, [3 / 8, 0, 3 / 8])
    assert shares.sum() < 1
