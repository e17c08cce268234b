"""Shared fixtures: tiny CLIPs with random weights, and models made of them."""

import importlib.util
import json
import logging
import os
import random
import signal
import threading
from pathlib import Path

# Before anything imports huggingface_hub: no test may download.
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import open_clip
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.logger import setup_logger
from helpers.fork_server import ForkServer
from hypothesis import settings
from PIL import Image
from tqdm import tqdm

from dcp_clip.config import setup_cfg
from dcp_clip.emoji_scenes.art import SEEN_ART, UNSEEN_ART
from dcp_clip.emoji_scenes.names import load_name_list
from dcp_clip.emoji_scenes.register import FOLDER
from dcp_clip.emoji_scenes.sprites import save_sprites
from dcp_clip.vocabulary import Vocabulary

# A slow machine is no failure.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")
ROOT = Path(__file__).parents[1]
BASE_CONFIG = ROOT / "configs" / "Base-DCP-CLIP.yaml"
_TEXT = {"context_length": 32, "vocab_size": 1024, "width": 32, "heads": 2, "layers": 2}
# open_clip model configs: timm's own miniature ConvNeXts read as convnext_base_w and
# convnext_large_d are, and two ViTs.
_TIMM = {"timm_pool": "", "timm_drop_path": 0.1, "image_size": 64}
_VIT = {"layers": 3, "width": 32, "head_width": 16}
TINY_CLIPS = {
    "test-convnext": {
        "embed_dim": 48,
        "vision_cfg": {**_TIMM, "timm_model_name": "test_convnext", "timm_proj": "linear"},
    },
    "test-convnext-mlp": {
        "embed_dim": 40,
        "vision_cfg": {**_TIMM, "timm_model_name": "test_convnext2", "timm_proj": "mlp"},
    },
    "test-vit-16": {
        "embed_dim": 40,
        "vision_cfg": {**_VIT, "image_size": 64, "patch_size": 16},
    },
    "test-vit-14-quickgelu": {
        "embed_dim": 40,
        "quick_gelu": True,
        "vision_cfg": {**_VIT, "image_size": 56, "patch_size": 14},
    },
}
_SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.DCP_CLIP.DIM": 32,
    "MODEL.DCP_CLIP.NUM_HEADS": 2,
    "MODEL.DCP_CLIP.FINE_DECODER.IMAGE_DIM": 16,
    "MODEL.DCP_CLIP.FINE_DECODER.CATEGORY_DIM": 8,
    "MODEL.DCP_CLIP.FINE_DECODER.REGION_STRIDE": 2,
    "MODEL.DCP_CLIP.FINE_DECODER.REGION_KEY_STRIDE": 4,
    "MODEL.DCP_CLIP.PROPOSAL.NUM_PROPOSALS": 4,
}


@pytest.fixture(autouse=True)
def progress_bar_lock():
    """Give each test its own lock of tqdm.

    A test's Ctrl-C inside of tqdm leaves the lock locked, and threads of later tests would wait for
    it forever.
    """
    tqdm.set_lock(threading.RLock())


@pytest.fixture(autouse=True)
def sigint_is_not_ignored():
    """Tests can interrupt programs, even if the shell or a library ignores the signal."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory):
    """Caches under ~ go to a folder of this run, in child processes too."""
    before, folder = os.environ.get("HOME"), tmp_path_factory.mktemp("home")
    os.environ["HOME"] = str(folder)
    yield folder
    if before is not None:
        os.environ["HOME"] = before


@pytest.fixture(autouse=True)
def loggers():
    """Programs change loggers, whose messages later tests read; change them back."""
    found = [logging.getLogger(name) for name in ("fvcore", "detectron2", "dcp_clip")]
    states = [(logger.handlers[:], logger.level) for logger in found]
    for logger in found:  # a fixture of a module can have changed it before the first test
        logger.propagate = True
    yield
    setup_logger.cache_clear()
    for logger, (handlers, level) in zip(found, states, strict=True):
        logger.handlers[:], logger.propagate = handlers, True
        logger.setLevel(level)


@pytest.fixture(scope="session", autouse=True)
def tiny_clips(tmp_path_factory):
    """Make TINY_CLIPS known to open_clip; their names."""
    folder = tmp_path_factory.mktemp("model_configs")
    for name, config in TINY_CLIPS.items():
        (folder / f"{name}.json").write_text(json.dumps({**config, "text_cfg": _TEXT}))
    open_clip.add_model_config(folder)
    return tuple(TINY_CLIPS)


@pytest.fixture(scope="session")
def load_program():
    """``load_program("tools/benchmark.py")``: the module of a program, loaded from its path."""

    def load(path):
        spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="module")
def fork_program():
    """``fork_program(program, *modules, **environment)``: a function that runs a program in forks.

    The modules are imported once. ``run(arguments, folder, action, at)`` returns status, out, err
    and number of moments. Moments are calls that open, rename, remove, truncate, sync or create
    something in the folder, or write to a file descriptor. At moment number `at`, the action
    disturbs the run: "kill", "term", "enospc", "eacces", "size" or "none".
    """
    servers = []

    def start(program, *modules, **environment):
        server = ForkServer(modules, environment)
        servers.append(server)

        def run(arguments, folder, action="none", at=0):
            disturbance = {"folder": str(folder), "action": action, "at": at}
            answer = server.run(ROOT / program, arguments, **disturbance)
            # The workers of a process that is killed may complain.
            assert action == "kill" or "Traceback" not in answer["err"], answer["err"]
            return answer

        return run

    yield start
    for server in servers:
        server.close()


@pytest.fixture(scope="session")
def random_moments(request):
    """``random_moments(count, seed, number)``: this many of the numbers 1 to `count`, sorted.

    The option --kills of pytest raises the number.
    """

    def draw(count, seed, number=8):
        number = max(number, request.config.getoption("--kills"))
        return sorted(random.Random(seed).sample(range(1, count + 1), min(number, count)))

    return draw


def _make_cfg(clip="test-convnext", opts=None):
    options = {**_SMALL, "MODEL.CLIP.NAME": clip, **(opts or {})}
    cfg = setup_cfg(BASE_CONFIG)
    cfg.merge_from_list([x for pair in options.items() for x in pair])
    return cfg


@pytest.fixture(scope="session")
def make_cfg():
    """``make_cfg(clip, {key: value})``: config of a small model on a tiny CLIP."""
    return _make_cfg


def _randomize(model, std=0.15, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(std * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="session")
def randomize():
    """``randomize(model)``: noise on every parameter, so that nothing is left at zero.

    Gates and last layers that start at zero would hide what the layers before them do.
    """
    return _randomize


@pytest.fixture(scope="session")
def make_model():
    """``make_model(clip, {key: value})``: a randomised small model in eval mode."""

    def make(clip="test-convnext", opts=None, seed=0):
        torch.manual_seed(seed)
        model = _randomize(build_model(_make_cfg(clip, opts)), seed=seed)
        model.set_vocabulary(Vocabulary(["sky", "tree", "car", "road", "wall", "cat"]))
        return model.eval()

    return make


@pytest.fixture(scope="session")
def make_image():
    """``make_image(height, width)``: (3, height, width) uint8 noise over coarse blobs."""

    def make(height, width, seed=0):
        generator = torch.Generator().manual_seed(seed)
        blobs = torch.rand(1, 3, 3, 3, generator=generator)
        image = 200 * torch.nn.functional.interpolate(blobs, (height, width), mode="bilinear")[0]
        return (image + 55 * torch.rand(3, height, width, generator=generator)).to(torch.uint8)

    return make


@pytest.fixture(scope="session")
def write_stripes():
    """``write_stripes(folder, count)``: images of 40 x 48 and their labels, three stripes."""

    def write(folder, count):
        rng = np.random.default_rng(0)
        for kind in ("images", "labels"):
            (folder / kind).mkdir()
        for i in range(count):
            image = rng.integers(0, 256, (40, 48, 3), np.uint8)
            label = np.repeat(np.arange(3, dtype=np.uint8), 16)[None].repeat(40, 0)
            label[: 5 * i] = 255
            Image.fromarray(image).save(folder / "images" / f"{i}.png")
            Image.fromarray(label).save(folder / "labels" / f"{i}.png")

    return write


@pytest.fixture(scope="session")
def write_sprites():
    """``write_sprites(root)``: sprites of EmojiScenes, a dozen things in every style, of noise."""

    def write(root):
        rng = np.random.default_rng(0)
        names = [thing.name for thing in load_name_list().things[:12]]
        for art in (*SEEN_ART, UNSEEN_ART):
            images = rng.integers(0, 256, (12, 24, 24, 4), dtype=np.uint8)
            images[..., 3] = 255
            save_sprites(root / FOLDER / "sprites" / f"{art.style}.npz", names, images)

    return write


@pytest.fixture
def segment():
    """``segment(model, image)``: the model's whole output for one image, without gradient."""

    @torch.no_grad()
    def run(model, image, vocabulary=None, **inputs):
        inputs |= {"image": image} | ({"vocabulary": vocabulary} if vocabulary else {})
        return model([inputs])[0]

    return run


def pytest_addoption(parser):
    parser.addoption(
        "--update-regression",
        action="store_true",
        help="store the outputs of the shipped weights instead of comparing them",
    )
    parser.addoption("--kills", type=int, default=0, help="disturb programs at N or more moments")
    parser.addoption("--rows", type=int, default=6000, help="images of a synthetic bulk run")
