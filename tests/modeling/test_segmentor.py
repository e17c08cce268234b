"""OpenVocabularySegmentor: the interface that every segmentor has."""

import pytest
import torch
from detectron2.modeling import build_model
from hypothesis import given, settings
from hypothesis import strategies as st

from dcp_clip.modeling.segmentor import OpenVocabularySegmentor
from dcp_clip.structures import Proposals
from dcp_clip.vocabulary import Vocabulary


class Backbone(torch.nn.Module):
    pixel_mean, pixel_std, size_divisibility = [0.0] * 3, [1.0] * 3, 8


class Segmentor(OpenVocabularySegmentor):
    """Its logits are the values of the first channel plus the id of the category."""

    def segment(self, images, image_sizes, vocabulary, labels=None, ids=None):
        offsets = torch.arange(len(vocabulary.synonyms))[:, None, None]
        logits = images[:, :1, ::4, ::4] + offsets
        return {"fine": logits}, Proposals.all_categories(logits), None


def make(kind=Segmentor, **options):
    defaults = {"backbone": Backbone(), "criterion": torch.nn.Identity(), "vocabulary": None}
    return kind(**(defaults | options))


@settings(deadline=None, max_examples=20)
@given(members=st.sets(st.sampled_from(["forward", "set_vocabulary", "device", "common_config"])))
def test_a_subclass_needs_segment(members):
    """Without it a segmentor cannot be created, whatever else a subclass defines."""
    overridden = {name: lambda *args: None for name in members}
    incomplete = type("Incomplete", (OpenVocabularySegmentor,), overridden)
    for kind in (OpenVocabularySegmentor, incomplete):
        with pytest.raises(TypeError, match="abstract method '?segment'?"):
            make(kind)
    complete = type("Complete", (incomplete,), {"segment": Segmentor.segment})
    assert isinstance(make(complete), OpenVocabularySegmentor)


def test_a_subclass_with_segment_is_a_whole_model(make_image):
    model = make(vocabulary=Vocabulary(["sky", "car", "cat"])).eval()
    output = model([{"image": make_image(33, 20), "height": 7, "width": 9}])[0]
    assert output["sem_seg"].image_size == (7, 9)
    assert (output["sem_seg"].argmax() == 2).all()
    assert output["proposals"]["ids"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("training", [False, True])
def test_an_empty_batch_is_refused(training):
    with pytest.raises(ValueError, match="the batch is empty"):
        make().train(training)([])


def test_unknown_outputs_are_refused():
    with pytest.raises(ValueError, match="OUTPUT is 'best'; known are last, fine, coarse"):
        make(output="best")


@pytest.mark.parametrize(
    "name",
    [
        *("PixelTextSegmentor", "CostAggregationSegmentor", "MaskQuerySegmentor"),
        *("FPNSegmentor", "SimilaritySegmentor"),
    ],
)
def test_coarse_logits_are_those_of_dcp_clip(make_cfg, name):
    opts = {"MODEL.META_ARCHITECTURE": name, "MODEL.DCP_CLIP.OUTPUT": "coarse"}
    opts["DATASETS.TRAIN"] = ("camvid_sem_seg_train",)
    with pytest.raises(ValueError, match=f"OUTPUT is 'coarse'; known are last, fine for {name}"):
        build_model(make_cfg("dcp-tiny-cnn", opts))
    build_model(make_cfg("dcp-tiny-cnn", opts | {"MODEL.DCP_CLIP.OUTPUT": "fine"}))
