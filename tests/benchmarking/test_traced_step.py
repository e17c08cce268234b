"""The traced cost of a training step agrees with the cost of a computed one."""

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from dcp_clip.benchmarking.call_cost import flop_counter
from dcp_clip.benchmarking.traced_step import PeakMemory, StepCost, memory_rows, trace_step
from dcp_clip.vocabulary import Vocabulary

KIB = 1024
VOCABULARY = Vocabulary(["sky", "tree", "car", "road", "wall", "cat"])


def test_peak_memory_by_hand():
    old = torch.ones(KIB)
    with PeakMemory() as memory:
        a = old + 1  # 4 KiB
        view = a[:10].view(2, 5)
        a.add_(1)
        old.mul_(2)  # made before
        assert memory.now == 4 * KIB
        b = a.double()  # 8 KiB
        del b
        c = view + 0.0
    assert memory.now == 4 * KIB + 40 and memory.peak == 12 * KIB
    del a
    assert memory.now == 4 * KIB + 40  # the view keeps the memory
    del view, c
    assert memory.now == 0
    assert old[0] == 2


def test_excluded_tensors_do_not_count():
    with PeakMemory() as memory:
        a = torch.zeros(KIB)
        memory.exclude(a)
        assert memory.now == 0
        del a
    assert memory.now == 0


@pytest.mark.parametrize(
    ("clip", "text"), [("test-convnext", "none"), ("test-vit-14-quickgelu", "all")]
)
def test_tracing_agrees_with_computing(make_cfg, clip, text):
    options = {"MODEL.CLIP.TRAIN_IMAGE": "all", "MODEL.CLIP.TRAIN_TEXT": text}
    model = build_model(make_cfg(clip, options)).train()
    traced = trace_step(model, VOCABULARY, 2, (64, 70), half=False)
    # The model is left as it was.
    assert all(type(p) is nn.Parameter and p.grad is None for p in model.parameters())
    divisor = model.backbone.size_divisibility
    if text == "none":
        model.text_encoder.encode_vocabulary(VOCABULARY)
    images = torch.zeros(2, 3, *(-(-side // divisor) * divisor for side in (64, 70)))
    with flop_counter() as flops, PeakMemory() as memory:
        logits, _, refinement = model.segment(images, [(64, 70)] * 2, VOCABULARY, None)
        forward, saved = flops.get_total_flops(), memory.now
        outputs = [*logits.values(), refinement.class_logits, refinement.mask_logits]
        sum(x.sum() for x in outputs).backward()
    assert traced.forward_flops == forward > 0
    assert traced.backward_flops == flops.get_total_flops() - forward > 0
    assert traced.peak_bytes >= 0.9 * saved
    # Gradients of weights are excluded when tracing.
    gradients = sum(p.nbytes for p in model.parameters())
    assert traced.peak_bytes <= 1.1 * memory.peak <= 1.2 * (traced.peak_bytes + gradients)


def test_half_precision_and_frozen_towers_need_less(make_cfg):
    def cost(policy, half):
        model = build_model(make_cfg("test-vit-16", {"MODEL.CLIP.TRAIN_IMAGE": policy})).train()
        return trace_step(model, VOCABULARY, 2, (64, 64), half)

    single, half, frozen = cost("all", False), cost("all", True), cost("none", False)
    assert half.peak_bytes < single.peak_bytes
    assert single.forward_flops == half.forward_flops == frozen.forward_flops
    assert frozen.backward_flops < single.backward_flops
    assert frozen.peak_bytes < single.peak_bytes


def test_memory_rows(make_cfg):
    cfg = make_cfg(opts={"SOLVER.EMA_DECAY": 0.9, "MODEL.CLIP.TRAIN_IMAGE": "none"})
    model = build_model(cfg)
    step = StepCost(forward_flops=0, backward_flops=0, peak_bytes=150)
    weights = sum(4 * p.numel() for p in model.parameters())
    weights += sum(b.numel() * b.element_size() for b in model.buffers())
    trained = sum(4 * p.numel() for p in model.parameters() if p.requires_grad)
    rows = {what: count for what, count, _ in memory_rows(model, cfg, step, num_gpus=2)}
    assert rows["weights"] == rows["averaged weights"] == weights > 2 * trained
    assert rows["gradients"] == rows["gradient buckets"] == trained
    assert rows["optimizer state"] == 2 * trained
    assert rows["activations"] == 150
    assert rows.pop("total") == sum(rows.values())
    alone = {what for what, *_ in memory_rows(model, make_cfg(), step, num_gpus=1)}
    assert not alone & {"gradient buckets", "averaged weights"}
