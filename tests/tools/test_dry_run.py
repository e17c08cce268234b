"""dry_run.py: what it counts is what there is; what it shows is what the config says."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image
from torch import nn

from dcp_clip.engine import Trainer
from dcp_clip.vocabulary import Vocabulary

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import dry_run  # noqa: E402
import dry_run_costs  # noqa: E402
import dry_run_schedule  # noqa: E402

TINY = str(ROOT / "configs" / "camvid" / "dcp_clip_tiny.yaml")
KIB = 1024
NAMES = ["sky", "tree", "car", "road", "wall", "cat"]


# ---- meters


def test_live_bytes_by_hand():
    old = torch.ones(KIB)
    with dry_run_costs.LiveBytes() as memory:
        a = old + 1  # 4 KiB
        view = a[:10].view(2, 5)
        a.add_(1)
        old.mul_(2)  # made before
        assert (memory.now, memory.kernels) == (4 * KIB, 3)
        b = a.double()  # 8 KiB
        del b
        c = view + 0.0
    assert memory.now == 4 * KIB + 40 and memory.peak == 12 * KIB and memory.made == 12 * KIB + 40
    del a
    assert memory.now == 4 * KIB + 40  # the view holds it
    del view, c
    assert memory.now == 0
    assert old[0] == 2


def test_live_bytes_forget():
    with dry_run_costs.LiveBytes() as memory:
        a = torch.zeros(KIB)
        memory.forget(a)
        assert memory.now == 0
        del a
    assert memory.now == 0


def backward_flops(module, *inputs):
    with dry_run_costs.flop_counter() as counter:
        out = module(*inputs)
        forward = counter.get_total_flops()
        out.sum().backward()
    return forward, counter.get_total_flops() - forward


def test_flops_of_depthwise_convolution():
    x = torch.zeros(2, 8, 10, 10, requires_grad=True)
    forward, backward = backward_flops(nn.Conv2d(8, 8, 3, padding=1, groups=8), x)
    assert forward == 2 * 2 * 100 * 8 * 9
    assert backward == 2 * forward


def test_flops_of_convolution_on_an_image():
    """No gradient of the input: one product fewer."""
    forward, backward = backward_flops(nn.Conv2d(3, 5, 3, padding=1), torch.zeros(1, 3, 8, 8))
    assert forward == backward == 2 * 64 * 5 * 27


def test_flops_of_attention():
    q, k, v = (torch.zeros(1, 2, 16, 8, requires_grad=True) for _ in range(3))
    forward, backward = backward_flops(nn.functional.scaled_dot_product_attention, q, k, v)
    assert forward == 2 * 2 * 2 * 16 * 16 * 8
    assert backward >= 2 * forward


@pytest.mark.parametrize(
    ("clip", "text"), [("test-convnext", "none"), ("test-vit-14-quickgelu", "all")]
)
def test_tracing_is_as_computing(make_cfg, clip, text):
    """What fake tensors take is what real ones take, and the model is left as it was."""
    options = {"MODEL.CLIP.TRAIN_IMAGE": "all", "MODEL.CLIP.TRAIN_TEXT": text}
    model = build_model(make_cfg(clip, options)).train()
    vocabulary = Vocabulary(NAMES)
    traced = dry_run_costs.trace_step(model, vocabulary, 2, (64, 70), half=False)
    assert all(type(p) is nn.Parameter and p.grad is None for p in model.parameters())
    divisor = model.backbone.size_divisibility
    if text == "none":
        model.text_encoder.encode_vocabulary(vocabulary)
    images = torch.zeros(2, 3, *(-(-side // divisor) * divisor for side in (64, 70)))
    with dry_run_costs.flop_counter() as flops, dry_run_costs.LiveBytes() as memory:
        maps, _, refinement = model.segment(images, [(64, 70)] * 2, vocabulary, None)
        assert flops.get_total_flops() == traced.forward_flops
        # Proposals are kept here and dropped there; images are made here before.
        assert memory.now == pytest.approx(traced.saved_bytes, rel=0.1)
        outputs = [*maps.values(), refinement.class_logits, refinement.mask_logits]
        sum(x.sum() for x in outputs).backward()
    assert flops.get_total_flops() - traced.forward_flops == traced.backward_flops > 0
    assert traced.peak_bytes >= traced.saved_bytes


def test_half_precision_and_frozen_towers_take_less(make_cfg):
    def cost(policy, half):
        model = build_model(make_cfg("test-vit-16", {"MODEL.CLIP.TRAIN_IMAGE": policy})).train()
        return dry_run_costs.trace_step(model, Vocabulary(NAMES), 2, (64, 64), half)

    single, half, frozen = cost("all", False), cost("all", True), cost("none", False)
    assert half.saved_bytes < single.saved_bytes
    assert half.peak_bytes < single.peak_bytes
    assert single.forward_flops == half.forward_flops == frozen.forward_flops
    assert frozen.backward_flops < single.backward_flops
    assert frozen.saved_bytes < single.saved_bytes


def test_memory_table(make_cfg):
    options = {"SOLVER.EMA_DECAY": 0.9, "MODEL.CLIP.TRAIN_IMAGE": "none"}
    cfg = make_cfg(opts=options)
    model = build_model(cfg)
    step = dry_run_costs.StepCost(0, 0, 100, 150, 0, 0)
    weights = sum(4 * p.numel() for p in model.parameters())
    weights += sum(b.numel() * b.element_size() for b in model.buffers())
    trained = sum(4 * p.numel() for p in model.parameters() if p.requires_grad)
    rows = {w: n for w, n, _ in dry_run_costs.memory_table(model, cfg, step, 70, num_gpus=2)}
    assert rows["weights"] == rows["averaged weights"] == weights > 4 * trained
    assert rows["gradients"] == rows["gradient buckets"] == trained
    assert rows["optimiser's state"] == 2 * trained
    assert rows["activations"] == 170  # the losses come on top of what backward needs
    assert rows.pop("total") == sum(rows.values())
    alone = {w for w, *_ in dry_run_costs.memory_table(model, make_cfg(), step, 0, num_gpus=1)}
    assert not alone & {"gradient buckets", "averaged weights"}


def test_losses_take_memory_with_every_image(make_cfg):
    cfg = make_cfg()
    model = build_model(cfg)
    one, two = (dry_run_costs.trace_losses(model, cfg, 6, batch, (64, 96)) for batch in (1, 2))
    maps = 2 * 4 * 4 * (64 // 4) * (96 // 4)  # two maps of K = 4 floats at stride 4
    assert maps < one < two <= 2.1 * one


# ---- schedule


@pytest.mark.parametrize("name", ["WarmupCosineLR", "WarmupPolyLR", "WarmupMultiStepLR"])
def test_schedule_is_what_the_scheduler_does(make_cfg, name):
    options = {"SOLVER.LR_SCHEDULER_NAME": name, "SOLVER.MAX_ITER": 50, "SOLVER.WARMUP_ITERS": 10}
    cfg = make_cfg(opts={**options, "SOLVER.STEPS": (20, 40)})
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = Trainer.build_lr_scheduler(cfg, optimizer)
    shape = dry_run_schedule.schedule_shape(scheduler, range(50))
    for expected in shape:
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * expected, abs=1e-9)
        scheduler.step()


def test_milestones_show_warm_up_steps_and_end(make_cfg):
    options = {"SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR", "SOLVER.STEPS": (60, 90)}
    cfg = make_cfg(opts={**options, "SOLVER.MAX_ITER": 100, "SOLVER.WARMUP_ITERS": 10})
    assert {0, 10, 59, 60, 89, 90, 99} <= set(dry_run_schedule.milestones(cfg))


# ---- the whole program


def test_report(run):
    text, output = run(trace=True, **{"MODEL.CLIP.TRAIN_IMAGE": "late"})
    assert "4 GPUs x 2 = 8 images an iteration, 100 iterations, 800 images: 400.0 epochs" in text
    assert "| backbone" in text and "| 0.0001" in text  # a hundredth of BASE_LR
    assert "gradient buckets" in text and "--tflops" in text and "--bandwidth" in text
    assert "Synthetic" not in text
    assert Image.open(output / "schedule.png").size > (400, 200)
    # Red is overlaid with the colour of tree, and so on; both halves are there.
    picture = np.asarray(Image.open(output / "first_batch.png")).astype(int)
    assert picture.shape[1] > 2 * 480 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 4


def test_other_numbers_of_gpus_rescale(run):
    text, _ = run("--num-gpus", "2")
    assert "2 GPUs x 2 = 4 images an iteration, 200 iterations, 800 images" in text
    assert "0.005" in text
    text, _ = run("--num-gpus", "1")
    assert "1 GPU x 2 = 2 images" in text and "gradient buckets" not in text


def test_time_by_hand(run):
    text, _ = run("--tflops", "10", "--bandwidth", "100")
    cells = {
        x.split("|")[1].strip(): x.split("|")[2].strip() for x in text.splitlines() if "|" in x
    }
    assert cells["arithmetic"] == "0.500"  # 2 + 3 TFLOPs at 10 a second
    assert cells["memory traffic"] == "0.030"  # three times a GB at 100 GB/s
    assert cells["launches"] == "0.001"
    assert "0.53 s a step" in text
    text, _ = run("--tflops", "5e9", "--bandwidth", "1e9")
    assert "0.001 s a step" in text  # nothing but launches


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config-file", "no/such.yaml"], "no/such.yaml"),
        (["--config-file", TINY, "--opts", "MODEL.CLIP.NAME", "ViT-Z"], "'ViT-Z'"),
        (["--config-file", ""], "'GeneralizedRCNN'"),
        (["--config-file", TINY, "--num-gpus", "0"], "must be positive"),
        (["--config-file", TINY, "--tflops", "-1"], "must be positive"),
        (["--config-file", TINY, "--bandwidth", "0"], "must be positive"),
        (["--config-file", TINY, "--num-gpus", "3"], "8, which 3 GPUs cannot share evenly"),
    ],
)
def test_bad_arguments_end_with_a_sentence(arguments, message, tmp_path):
    with pytest.raises(SystemExit) as stop:
        dry_run.main(["--output", str(tmp_path), *arguments])
    assert message in str(stop.value)
