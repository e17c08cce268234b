"""Regions from masks: mean logits by hand, overlaps, SAM's dicts, bad masks, and the predictor."""

import numpy as np
import pytest
import torch

from dcp_clip.config import get_cfg
from dcp_clip.predictor import Predictor
from dcp_clip.structures import SemSegLabels, SemSegProposals, label_regions, region_map


def some_output(temperature=2.0):
    maps = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([1, 4, 7])
    return SemSegProposals(maps, ids, 9, (40, 54), (4.5, 6.0), temperature)


def some_masks():
    rng = np.random.default_rng(0)
    masks = [np.zeros((40, 54), bool) for _ in range(3)]
    masks[0][3:30, 5:40] = rng.random((27, 35)) < 0.7
    masks[1][10:14, 10:20] = True  # inside the first one
    masks[2][35:, 50:] = True
    return masks


def test_a_region_has_the_category_of_its_mean_logits():
    output, masks = some_output(), some_masks()
    labels = label_regions(output, [masks[0], {"segmentation": masks[1], "area": 40}, masks[2]])
    logits = output.logits
    expected, confidence = output.label_map().copy(), output.confidence().astype(np.float32)
    for mask in (masks[0] & ~masks[1], masks[1], masks[2]):
        mean = logits[:, torch.from_numpy(mask)].mean(1)
        expected[mask] = output.category_ids[mean.argmax()]
        confidence[mask] = float((mean / 2.0).softmax(0).max())
    assert (expected != output.label_map()).any()  # the masks matter
    assert np.array_equal(labels.label_map(), expected)
    assert labels.label_map().dtype == output.label_map().dtype
    np.testing.assert_allclose(labels.confidence(), confidence, atol=1e-3)


def test_without_masks_nothing_changes():
    output = some_output()
    assert label_regions(output, None) is output
    labels = label_regions(output, [])
    assert np.array_equal(labels.label_map(), output.label_map())
    assert np.array_equal(labels.confidence(), output.confidence())


def test_the_smallest_mask_of_a_pixel_counts_in_any_order():
    first, second, third = some_masks()
    regions = region_map([second, first, third], (40, 54))
    assert (regions[second] == 1).all() and (regions[first & ~second] == 2).all()
    assert (regions[third] == 3).all() and (regions[~(first | second | third)] == 0).all()


@pytest.mark.parametrize(
    "mask", [np.ones((40, 53), bool), np.ones((40, 54), np.uint8), {"segmentation": np.ones(3)}]
)
def test_a_bad_mask_is_named(mask):
    with pytest.raises(ValueError, match=r"regions\[1\] is .*a bool array of the size .*40, 54"):
        label_regions(some_output(), [some_masks()[0], mask])


def test_labels_alone_are_refused():
    labels = SemSegLabels(np.zeros((40, 54), np.uint8), torch.tensor([0]), 1)
    with pytest.raises(ValueError, match="regions need logits"):
        label_regions(labels, some_masks())


def test_the_predictor_takes_regions(make_model):
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 64, 128
    predictor = Predictor(cfg, "sky; tree; car; road", model=make_model())
    image = np.random.default_rng(0).integers(0, 256, (40, 54, 3), np.uint8)
    mask = np.zeros((40, 54), bool)
    mask[:, 10:44] = True
    plain, prediction = predictor(image), predictor(image, regions=[mask])
    assert len(np.unique(prediction.label_map[mask])) == 1
    assert np.array_equal(prediction.label_map[~mask], plain.label_map[~mask])
    predictor.set_image(image)
    again = predictor.predict(regions=[{"segmentation": mask}])
    assert np.array_equal(again.label_map, prediction.label_map)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (5, "regions must be a list of masks, got int"),
        ({"segmentation": 1}, "regions must be a list of masks, got dict"),
        ([{"mask": 1}], r"regions\[0\] is object"),
        ([{"segmentation": {"counts": "a"}}], "pycocotools.mask.decode"),
    ],
)
def test_masks_of_another_type(masks, message):
    with pytest.raises(ValueError, match=message):
        region_map(masks, (4, 6))
