"""Evaluation in windows: the labels of the whole image, with bounded memory."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from dcp_clip.benchmarking.call_cost import peak_bytes
from dcp_clip.modeling.large_image import segment_large_image
from dcp_clip.modeling.sliding_window import SlidingWindow
from dcp_clip.utils.upsampling import resized_bands
from dcp_clip.vocabulary import Vocabulary

NODE = "MODEL.DCP_CLIP.SLIDING_WINDOW."
NAMES = Vocabulary(["sky", "tree", "car", "road", "wall", "cat"])
IDS = torch.tensor([4, 0, 5])


class LocalModel:
    """Its logits are the colours of the image, averaged over cells of 4 x 4 pixels.

    A window therefore gives the logits of the whole image. The model pads to multiples of
    `divisor` with another colour. It proposes `ids`, whose number is a multiple of three.
    """

    def __init__(self, divisor=8, ids=IDS):
        self.divisor, self.ids, self.calls = divisor, ids, []

    def propose(self, image):
        assert not self.calls
        self.calls.append(image.shape[-2:])
        return self.ids, self.ids / 10

    def segment(self, image, ids):
        height, width = image.shape[-2:]
        assert torch.equal(ids, self.ids) and self.calls
        self.calls.append((height, width))
        padded = [-(-side // self.divisor) * self.divisor for side in (height, width)]
        canvas = F.pad(image[None].float(), (0, 3, 0, 3), mode="replicate")
        canvas = F.pad(canvas, (0, padded[1] - width - 3, 0, padded[0] - height - 3), value=-1e3)
        return F.avg_pool2d(canvas, 4)[0].repeat(len(ids) // 3, 1, 1), (height / 4, width / 4)


def logits_of_whole(image, size):
    height, width = image.shape[-2:]
    cells = F.avg_pool2d(F.pad(image[None].float(), (0, 3, 0, 3), mode="replicate"), 4)[0]
    cells = cells[:, : -(-height // 4), : -(-width // 4)]
    bands = resized_bands(cells, size, (height / 4, width / 4))
    return torch.cat([band for _, band in bands], dim=1)


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    output=st.none() | st.tuples(st.integers(1, 90), st.integers(1, 90)),
    window=st.sampled_from([(16, 8), (16, 16), (24, 4), (32, 28)]),
    divisor=st.sampled_from([4, 8, 16]),
)
def test_windows_give_the_labels_of_the_whole_image(size, output, window, divisor):
    generator = torch.Generator().manual_seed(sum(size))
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)
    model, slider = LocalModel(divisor), SlidingWindow(*window)
    sem_seg, ids, scores = slider.segment(
        image, output or size, len(NAMES), model.propose, model.segment, temperature=50.0
    )
    maps = logits_of_whole(image, output or size)
    best, second = maps.topk(2, dim=0).values
    clear = best - second > 1e-3
    label_map = sem_seg.argmax(dim=0)
    assert torch.equal(label_map[clear], IDS[maps.argmax(0)][clear])
    assert label_map.shape == (output or size)
    confidence = (maps / 50).softmax(0).amax(0)
    torch.testing.assert_close(
        torch.from_numpy(sem_seg.confidence()).float(), confidence, atol=1e-3, rtol=0
    )
    assert torch.equal(ids, IDS) and torch.equal(scores, IDS / 10)
    model.calls.clear()
    plain, _, _ = slider.segment(
        image, output or size, len(NAMES), model.propose, model.segment, temperature=None
    )
    assert torch.equal(plain.argmax(dim=0), label_map)
    assert max(model.calls[0]) <= slider.size
    assert all(max(call) <= slider.size for call in model.calls)


def test_the_whole_image_chooses_the_categories(make_model, make_image):
    """All windows have the categories of the whole image, even those that they do not show."""
    model = make_model(opts={NODE + "SIZE": 64, NODE + "STRIDE": 32})
    seen = []
    model.proposal.register_forward_hook(lambda _, args, out: seen.append((args[6], out.ids)))
    with torch.no_grad():
        (output,) = model([{"image": make_image(100, 150), "height": 50, "width": 75}])
    assert seen[0][0] is None and len(seen) == 1 + 3 * 4
    assert all(torch.equal(ids, seen[0][1]) for _, ids in seen)
    sem_seg = output["sem_seg"]
    assert sem_seg.image_size == (50, 75)
    assert torch.equal(sem_seg.category_ids, seen[0][1][0])
    assert set(sem_seg.argmax().unique().tolist()) <= set(sem_seg.category_ids.tolist())


def test_the_oracle_chooses_the_categories_of_all_windows(make_model, make_image):
    """The logits of a window have the order of the proposed ids."""
    opts = {NODE + "SIZE": 64, "MODEL.DCP_CLIP.PROPOSAL.NAME": "OracleProposal"}
    model = make_model(opts=opts)
    image, labels = make_image(64, 128), torch.tensor([5, 1, 3, 0]).repeat_interleave(32)
    inputs = {"image": image, "sem_seg": labels.expand(64, 128), "vocabulary": NAMES}
    with torch.no_grad():
        sem_seg = model([inputs])[0]["sem_seg"]
        assert sem_seg.category_ids.tolist() == [0, 1, 3, 5]
        ids = sem_seg.category_ids
        logits, _, _ = model._segment_images([image[..., :64]], NAMES, ids=ids[None])
    left = ids[logits[0].argmax(0)]  # the first window alone covers this part
    painted = sem_seg.argmax()[1:64:2, 1:32:2]
    assert (painted == left[:, :16]).float().mean() > 0.8


def test_an_image_that_fits_into_a_window_is_segmented_as_a_whole(make_model, make_image):
    images = [{"image": make_image(64, 48)}, {"image": make_image(40, 64, seed=1)}]
    with torch.no_grad():
        windowed = make_model(opts={NODE + "SIZE": 64})(images)
        whole = make_model()(images)
    for a, b in zip(windowed, whole, strict=True):
        assert torch.equal(a["sem_seg"].logits, b["sem_seg"].logits)


def test_memory_grows_with_the_image_only():
    """It grows by the bytes of the image, but not by the logits, which are 15 bytes per pixel."""
    peaks = []
    for height in (96, 96, 960):  # the first call also allocates what stays in memory
        image = torch.zeros(3, height, 40, dtype=torch.uint8)
        model = LocalModel(ids=torch.arange(60))
        run = partial(
            SlidingWindow(32, 16).segment, image, (height, 40), 60, model.propose, model.segment
        )
        peaks.append(peak_bytes(run, image.device))
    assert peaks[1] > 60 * 8 * 10 * 4
    assert peaks[2] - peaks[1] < 5 * (960 - 96) * 40


@pytest.mark.parametrize(
    "size, stride, key", [(30, 8, "SIZE"), (32, 6, "STRIDE"), (32, 36, "gaps"), (-4, 4, "SIZE")]
)
def test_the_error_for_a_wrong_value_names_the_key(make_cfg, size, stride, key):
    cfg = make_cfg(opts={NODE + "SIZE": size, NODE + "STRIDE": stride})
    with pytest.raises(ValueError, match=key):
        SlidingWindow.from_config(cfg)


def test_windows_are_off_by_default_and_overlap_by_half(make_cfg):
    assert SlidingWindow.from_config(make_cfg()) is None
    assert SlidingWindow.from_config(make_cfg(opts={NODE + "SIZE": 40})).stride == 20


@pytest.mark.parametrize(
    "size, window", [((70, 51), (16, 8)), ((64, 96), (32, 28)), ((9, 40), (24, 4))]
)
def test_regions_together_are_the_whole_image(size, window):
    """Regions have no seam: each has the labels that the whole image has there."""
    generator = torch.Generator().manual_seed(sum(size))
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)
    model, slider = LocalModel(), SlidingWindow(*window)
    sizes = size, len(NAMES)
    whole, ids, _ = slider.segment(image, *sizes, model.propose, model.segment, temperature=50.0)

    def of_window(top, left, height, width):
        return model.segment(image[:, top : top + height, left : left + width], ids)

    for top, left in itertools.product(range(0, size[0], 20), range(0, size[1], 24)):
        region = top, left, min(20, size[0] - top), min(24, size[1] - left)
        part = slider.segment_region(size, region, ids, len(NAMES), of_window, 50.0)
        place = np.s_[top : top + 20, left : left + 24]
        np.testing.assert_array_equal(part.label_map(), whole.label_map()[place])
        np.testing.assert_allclose(part.confidence(), whole.confidence()[place], atol=1e-3)
    plain = slider.segment_region(size, region, ids, len(NAMES), of_window, None)
    np.testing.assert_array_equal(plain.label_map(), part.label_map())
    with pytest.raises(ValueError, match="confidence=True"):
        plain.confidence()
    # A window that is left out changes only what it touches.
    without = slider.segment_region(size, (0, 0, *size), ids, len(NAMES), lambda *place: None)
    assert without.image_size == size


def test_a_large_image_is_segmented_in_the_windows_of_the_model(make_model, make_image):
    """Its regions have the labels of an image in memory."""
    model = make_model(opts={NODE + "SIZE": 64, NODE + "STRIDE": 32})
    image = make_image(100, 150)
    with torch.no_grad():
        (whole,) = model([{"image": image}])
        answer = segment_large_image(model, model.vocabulary, image)
        (ids,) = make_model()([{"image": image, "category_ids": torch.tensor([5, 2])}])
    assert torch.equal(answer["sem_seg"].argmax(), whole["sem_seg"].argmax())
    assert torch.equal(answer["proposals"]["ids"], whole["proposals"]["ids"])
    assert sorted(ids["sem_seg"].category_ids.tolist()) == [2, 5]
