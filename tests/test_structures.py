"""Proposals, and SemSegProposals as a compact form of a (C, H, W) tensor."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dcp_clip.structures import Proposals, SemSegLabels, SemSegProposals


@st.composite
def sem_segs(draw) -> SemSegProposals:
    num_categories = draw(st.integers(1, 9))
    k = draw(st.integers(1, num_categories))
    size = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    ids = torch.randperm(num_categories, generator=generator)[:k]
    maps = torch.randn(k, *size, generator=generator)
    image_size = draw(st.none() | st.tuples(st.integers(1, 9), st.integers(1, 9)))
    extent = draw(st.none() | st.just((size[0] - 0.4, size[1] - 0.2)))
    return SemSegProposals(maps, ids, num_categories, image_size, extent)


@settings(max_examples=40, deadline=None)
@given(sem_segs())
def test_equals_the_dense_tensor(sem_seg):
    dense = sem_seg.to_dense()
    assert dense.shape == (sem_seg.num_categories, *sem_seg.image_size)
    assert torch.equal(sem_seg.argmax(dim=0), dense.argmax(dim=0))
    assert sem_seg.argmax().dtype == torch.int64
    np.testing.assert_array_equal(sem_seg.label_map(), sem_seg.argmax().numpy())
    proposed = torch.zeros(sem_seg.num_categories, dtype=torch.bool)
    proposed[sem_seg.category_ids] = True
    assert torch.isneginf(dense[~proposed]).all() and torch.isfinite(dense[proposed]).all()
    assert (sem_seg.to_dense(fill=-7.0)[~proposed] == -7).all()
    assert len(sem_seg) == int(proposed.sum())


@settings(max_examples=10, deadline=None)
@given(sem_segs())
def test_to_converts_the_maps_and_keeps_the_ids(sem_seg):
    half = sem_seg.to(torch.float16)
    assert half.maps.dtype == torch.float16 and half.image_size == sem_seg.image_size
    assert half.extent == sem_seg.extent and len(half.to_dense()) == half.num_categories
    assert half.category_ids.dtype == torch.int64
    assert torch.equal(half.category_ids, sem_seg.category_ids)
    assert half.num_categories == sem_seg.num_categories
    assert sem_seg.to("meta").device == sem_seg.to("meta").category_ids.device
    assert torch.equal(sem_seg.to(torch.device("cpu")).logits, sem_seg.logits)


@pytest.mark.parametrize(
    "logits, ids",
    [
        (torch.zeros(2, 3), torch.arange(2)),
        (torch.zeros(2, 3, 3), torch.arange(3)),
        (torch.zeros(0, 3, 3), torch.arange(0)),
    ],
)
def test_invalid_shapes(logits, ids):
    with pytest.raises(ValueError, match="SemSegProposals needs logits"):
        SemSegProposals(logits, ids, 5)


def test_argmax_of_another_dimension():
    with pytest.raises(ValueError, match="dim=0"):
        SemSegProposals(torch.zeros(2, 3, 3), torch.arange(2), 5).argmax(dim=1)


def test_label_map_is_computed_once():
    """A timer and several evaluators can then call argmax without additional cost."""
    sem_seg = SemSegProposals(torch.rand(2, 4, 4), torch.tensor([1, 3]), 5, image_size=(8, 8))
    first = sem_seg.argmax(dim=0)
    sem_seg.maps.zero_()
    assert torch.equal(sem_seg.argmax(dim=0), first)
    first.zero_()  # does not change the cached label map
    assert sem_seg.argmax(dim=0).any()


@pytest.mark.parametrize(
    "num_categories, dtype", [(1, "uint8"), (256, "uint8"), (257, "uint16"), (70000, "uint32")]
)
def test_label_map_has_the_smallest_dtype(num_categories, dtype):
    maps = torch.zeros(2, 3, 3)
    maps[1, 0] = 1
    ids = torch.tensor([0, num_categories - 1])
    label_map = SemSegProposals(maps, ids, num_categories).label_map()
    assert label_map.dtype == dtype
    assert (label_map[0] == num_categories - 1).all() and (label_map[1:] == 0).all()


def test_labels_have_the_methods_of_proposals():
    sem_seg = SemSegProposals(torch.randn(3, 4, 5), torch.tensor([7, 0, 300]), 301, (9, 11))
    labels = SemSegLabels(sem_seg.label_map(), sem_seg.category_ids, 301)
    assert torch.equal(labels.to(torch.device("cpu")).argmax(dim=0), sem_seg.argmax(dim=0))
    assert labels.image_size == (9, 11) and len(labels) == 3 and "H=9, W=11" in repr(labels)
    assert labels.device == sem_seg.device
    with pytest.raises(ValueError, match="dim=0"):
        labels.argmax(dim=1)


def test_gather():
    ids = torch.tensor([[2, 0, 1]])
    valid = torch.tensor([[True, True, False]])
    proposals = Proposals(ids, ids / 10, valid, torch.zeros(1, 3, 4))
    present = torch.tensor([[True, True, True, False]])
    assert proposals.gather(present).tolist() == [[True, True, False]]


def test_detectron2_evaluator_accepts_it(tmp_path):
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 4, (6, 8), generator=generator).numpy().astype(np.uint8)
    label[0, :3] = 255
    Image.fromarray(label).save(tmp_path / "a.png")
    name = "test_structures_sem_seg"
    record = {"file_name": "a.jpg", "sem_seg_file_name": str(tmp_path / "a.png")}
    DatasetCatalog.register(name, lambda: [record])
    MetadataCatalog.get(name).set(stuff_classes=list("abcd"), ignore_label=255)
    try:
        sem_seg = SemSegProposals(
            torch.randn(3, 6, 8, generator=generator), torch.tensor([3, 0, 2]), 4
        )
        results = []
        for prediction in (sem_seg, sem_seg.to_dense()):
            evaluator = SemSegEvaluator(name, distributed=False)
            evaluator.reset()
            evaluator.process([record], [{"sem_seg": prediction}])
            results.append(evaluator.evaluate()["sem_seg"])
        assert results[0].keys() == results[1].keys()
        np.testing.assert_equal(dict(results[0]), dict(results[1]))
        assert 0 < results[0]["mIoU"] < 100
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)
