"""A head gets labels in training, and its own losses are added to those of the criterion."""

import pytest
import torch
from torch import nn

from dcp_clip.modeling.losses import IGNORE_INDEX, SegmentationCriterion


class Head(nn.Module):
    """Wraps a head, keeps the labels that it gets, and returns ``answer(logits)`` in training."""

    def __init__(self, head, answer):
        super().__init__()
        self.head, self.answer, self.labels = head, answer, []

    def forward(self, features, text, labels):
        self.labels.append(labels)
        logits = self.head(features, text, labels)
        return logits if labels is None else self.answer(logits)


@pytest.fixture
def wrap(make_head):
    """``wrap(answer)``: a model in training mode whose head returns ``answer(logits)``."""

    def wrap(answer):
        model = make_head("PixelTextSegmentor").train()
        model.head = Head(model.head, answer)
        return model

    return wrap


def own(logits):
    return {"loss_own": logits.square().mean()}


def test_losses_are_added(wrap, batch):
    plain = wrap(lambda logits: logits)(batch)
    both = wrap(lambda logits: (logits, own(logits)))(batch)
    assert both.pop("loss_own") > 0 and both.keys() == plain.keys() and plain
    assert all(both[name] == plain[name] for name in plain)


def test_losses_without_logits_are_the_only_ones(wrap, batch):
    model = wrap(lambda logits: (None, own(logits)))
    losses = model(batch)
    assert list(losses) == ["loss_own"]
    losses["loss_own"].backward()
    assert model.head.head.out.weight.grad.abs().sum() > 0


def test_labels_are_those_of_the_padded_images_and_for_training_only(wrap, batch):
    model = wrap(lambda logits: logits)
    for x in batch:
        x["image"], x["sem_seg"] = x["image"][:, :50], x["sem_seg"][:50].clone()
        x["sem_seg"][0, 0] = 255
    model(batch)
    (labels,) = model.head.labels
    assert labels.shape == (2, 64, 64)
    for i, x in enumerate(batch):
        x["sem_seg"][0, 0] = IGNORE_INDEX
        assert torch.equal(labels[i, :50], x["sem_seg"]) and (labels[i, 50:] == IGNORE_INDEX).all()
    with torch.no_grad():
        model.eval()(batch)  # with labels, which an oracle would use
    assert set(model.head.labels[1:]) == {None}


def test_names_of_other_losses_are_an_error(wrap, batch):
    model = wrap(lambda logits: (logits, {"loss_fine_ce": logits.mean()}))
    with pytest.raises(ValueError, match="own losses loss_fine_ce have names of other losses"):
        model(batch)


def test_another_criterion_gets_all_arguments(wrap, batch):
    class Criterion(nn.Module):
        def forward(self, logits, own, proposals, labels, num_categories):
            assert logits["fine"].shape[:2] == proposals.ids.shape == (2, num_categories)
            assert labels.shape == (2, 64, 64) and num_categories == 5
            return {"loss_mine": 2 * own["loss_own"]}

    model = wrap(lambda logits: (logits, own(logits)))
    value = model(batch)["loss_own"]
    assert isinstance(model.criterion, SegmentationCriterion)
    model.criterion = Criterion()
    assert model(batch) == {"loss_mine": 2 * value}
