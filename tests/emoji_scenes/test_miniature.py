"""EmojiScenes in miniature: pre-train a CLIP and train DCP-CLIP in seconds.

CLIP is trained with captions of all names, DCP-CLIP with masks of half of the things. The test
measures both halves.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from dcp_clip.config import get_cfg, setup_cfg
from dcp_clip.emoji_scenes.names import NameList, load_name_list
from dcp_clip.emoji_scenes.pretraining import add_pretraining_config
from dcp_clip.emoji_scenes.pretraining.pairs import PairSource
from dcp_clip.emoji_scenes.scenes import SceneOptions
from dcp_clip.emoji_scenes.sprites import save_sprites
from dcp_clip.emoji_scenes.subsets import SceneSource, Subset
from dcp_clip.evaluation.confusion import count_pairs, score

SIZE, SPRITE = 64, 48
BASE, UNSEEN = range(4), range(4, 8)  # things with and without masks in training
STUFF = ("snow", "night sky", "grass", "water")


def draw(kind, color):
    """(SPRITE, SPRITE, 4): a disc, a cross, a bar or a ring."""
    y, x = np.mgrid[:SPRITE, :SPRITE] / (SPRITE - 1) * 2 - 1
    mask = {
        "disc": x * x + y * y < 1,
        "cross": (abs(x) < 0.4) | (abs(y) < 0.4),
        "bar": abs(y) < 0.5,
        "ring": (x * x + y * y < 1) & (x * x + y * y > 0.3),
    }[kind]
    sprite = np.zeros((SPRITE, SPRITE, 4), np.uint8)
    sprite[..., :3], sprite[..., 3] = color, 255 * mask
    return sprite


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A list of eight things and four kinds of stuff, and a folder of sprites."""
    every = load_name_list()
    stuff = tuple(s for s in every.stuff if s.name in STUFF)
    things = tuple(replace(thing, synonyms=()) for thing in every.things[:8])
    names = NameList(things, stuff)
    colors = [(220, 40, 40), (250, 210, 40), (160, 60, 200), (20, 20, 20)]
    drawings = [
        draw(k, colors[(i + i // 4) % 4])
        for i, k in enumerate(("disc", "cross", "bar", "ring") * 2)
    ]
    folder = tmp_path_factory.mktemp("world")
    save_sprites(folder / "plain.npz", [thing.name for thing in things], drawings)
    return names, folder


@pytest.fixture(scope="module")
def clip_weights(world, tmp_path_factory):
    """Weights of a CLIP that was pre-trained with captions of all names."""
    names, folder = world
    cfg = get_cfg()
    add_pretraining_config(cfg)
    opts = ["MODEL.META_ARCHITECTURE", "CLIPPretraining", "MODEL.BACKBONE.NAME", "CLIPBackbone"]
    cfg = setup_cfg(opts=[*opts, "MODEL.CLIP.NAME", "dcp-tiny-cnn-s16"], cfg=cfg)
    torch.manual_seed(0)
    model = build_model(cfg).train()
    source = PairSource(folder, ("plain",), names, ("a {}",))
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for number in range(48):
        batch = source.scenes(number, SIZE, 24) if number % 2 else source.singles(number, 32, 48)
        optimizer.zero_grad()
        sum(model(batch).values()).backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("clip") / "clip.pth"
    torch.save(model.clip_state(), path)
    return path


def scenes(world, things, name, count):
    """Yield images (3, H, W) and labels (H, W) of scenes with these things."""
    names, folder = world
    first = len(names.things)
    subset = Subset(
        name,
        "seen",
        tuple((i, names.things[i].name) for i in things),
        tuple((first + i, s.name, s.place) for i, s in enumerate(names.stuff)),
        tuple(range(len(names.entries))),
        count,
    )
    options = SceneOptions(size=SIZE, things=(1, 3), thing_size=(0.35, 0.6))
    source = SceneSource(subset, str(folder), ("plain",), options=options)
    for index in range(count):
        scene = source(index)
        yield (
            torch.from_numpy(scene.image).permute(2, 0, 1),
            torch.from_numpy(scene.labels.astype(np.int64)),
        )


def build(world, weights, **options):
    names, _ = world
    settings = {
        "MODEL.META_ARCHITECTURE": "DCPCLIP",
        "MODEL.BACKBONE.NAME": "CLIPBackbone",
        "MODEL.CLIP.NAME": "dcp-tiny-cnn-s16",
        "MODEL.CLIP.PRETRAINED": str(weights),
        "MODEL.DCP_CLIP.DIM": 48,
        "MODEL.DCP_CLIP.FINE_DECODER.IMAGE_DIM": 16,
        "MODEL.DCP_CLIP.PROPOSAL.POOLED_WEIGHT": 0.0,
        "MODEL.DCP_CLIP.PROPOSAL.NUM_PROPOSALS": 6,
        "MODEL.DCP_CLIP.CLASS_REFINEMENT.NAME": "ReassignmentRefinement",
        "MODEL.DCP_CLIP.VOCABULARY.CACHE_DIR": "",
        **{f"MODEL.DCP_CLIP.{key}": value for key, value in options.items()},
    }
    torch.manual_seed(0)
    model = build_model(setup_cfg(opts=[x for pair in settings.items() for x in pair]))
    model.set_vocabulary(names.vocabulary(tuple(range(len(names.entries)))))
    return model


def mean_iou(world, model, things):
    """Mean IoU in percent, over the things that are present."""
    names, _ = world
    count = len(names.entries)
    matrix = np.zeros((count + 1, count + 1), np.int64)
    model.eval()
    for image, labels in scenes(world, things, "mini_test", 16):
        with torch.no_grad():
            found = model([{"image": image}])[0]["sem_seg"].argmax(dim=0)
        matrix += count_pairs(found.numpy(), labels.numpy(), count)
    return 100 * np.nanmean(score(matrix).iou[list(things)])


def test_training_on_some_things_beats_training_free_on_all(world, clip_weights):
    names, _ = world
    known = [*BASE, *range(len(names.things), len(names.entries))]
    free = build(
        world,
        clip_weights,
        **{
            "PROPOSAL.LEARNED": False,
            "TEXT_GUIDANCE.NAME": "StaticGuidance",
            "COARSE_DECODER.NAME": "CosineDecoder",
            "FINE_DECODER.NAME": "BilateralDecoder",
            "CLASS_REFINEMENT.NAME": "MaskPooledRefinement",
            "CLASS_REFINEMENT.LEARNED": False,
        },
    )
    model = build(world, clip_weights).train()
    model.set_vocabulary(names.vocabulary(tuple(known)))
    category = torch.zeros(len(names.entries), dtype=torch.int64)
    category[known] = torch.arange(len(known))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 3e-3)
    records = [
        {"image": image, "sem_seg": category[labels]}
        for image, labels in scenes(world, BASE, "mini_train", 48)
    ]
    for step in range(48):
        start = step * 8 % len(records)
        losses = model(records[start : start + 8])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    model.set_vocabulary(names.vocabulary(tuple(range(len(names.entries)))))
    # Each half is measured on its own scenes.
    ours = [mean_iou(world, model, half) for half in (BASE, UNSEEN)]
    baseline = [mean_iou(world, free, half) for half in (BASE, UNSEEN)]
    assert sum(ours) > 1.3 * sum(baseline)
    assert ours[1] > 1.3 * baseline[1]
