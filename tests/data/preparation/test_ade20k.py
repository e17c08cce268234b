"""Label maps of full ADE20K."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from dcp_clip.data.preparation.ade20k import read_ade_objects


@given(
    hnp.arrays(np.uint16, (4, 5), elements=st.integers(0, 25 * 256 + 255)),
    hnp.arrays(np.uint8, (4, 5, 2), elements=st.integers(0, 5)),
)
def test_ade_objects_do_not_depend_on_the_rest_of_the_colour(tmp_path_factory, ids, noise):
    path = tmp_path_factory.getbasetemp() / "ade_seg.png"
    rgb = np.stack([ids // 256 * 10 + noise[..., 0], ids % 256, noise[..., 1]], -1)
    Image.fromarray(rgb.astype(np.uint8)).save(path)
    np.testing.assert_array_equal(read_ade_objects(path), ids)
